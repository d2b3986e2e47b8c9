//! What goes over the sockets between worker, guard and shims.
//!
//! The sockets are of kind SEQPACKET: one message is one packet, so nothing is ever half read. Messages are small JSON
//! texts; a launch, which may be megabytes, travels as a memory file whose descriptor rides on the `launch` command,
//! and is read by its shim alone. A last will travels in the same way. This module must not know what the messages
//! mean.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Step;
use super::log::LogSize;

/// Longest message in bytes. The longest that is ever sent has a tenth of it.
const MESSAGE_LIMIT: usize = 8 * 1024;

/// Longest memory file in bytes. The kernel itself takes far less for arguments and environment.
const LENGTH_LIMIT: u64 = 64 * 1024 * 1024;

/// What the worker tells the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Command {
    /// Start what the descriptor that comes along describes.
    Launch { id: u64 },
    /// SIGTERM to the process group.
    Terminate { id: u64 },
    /// SIGKILL to the whole tree until it is gone.
    Kill { id: u64 },
    /// Kill every tree at this moment of CLOCK_BOOTTIME; never when absent.
    AliveUntil { nanoseconds: Option<u64> },
    /// Keep the last will that the descriptor that comes along holds, in place of any other.
    LastWill,
    /// Forget the last will.
    NoLastWill,
}

/// What the guard tells the worker; all but the first and the last come from a shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// The guard listens.
    Ready,
    Started {
        id: u64,
        pid: u32,
    },
    LaunchFailed {
        id: u64,
        step: Step,
        errno: i32,
    },
    Exited(Ending),
    /// The moment `alive_until` passed, and every shim was told to kill.
    Fenced {
        until: u64,
    },
}

/// The end of a tree as its shim saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ending {
    pub(super) id: u64,
    /// As `waitpid` gives it; absent when the shim was lost.
    pub(super) status: Option<i32>,
    pub(super) by_us: bool,
    pub(super) fenced: bool,
    pub(super) processor_microseconds: u64,
    pub(super) peak_memory: u64,
    pub(super) leftovers: u32,
    pub(super) oom_killed: bool,
    pub(super) stdout: LogSize,
    pub(super) stderr: LogSize,
}

impl Ending {
    /// The end of a launch of which nothing is known but that its tree is gone.
    pub(super) fn lost(id: u64, by_us: bool, fenced: bool) -> Self {
        Ending {
            id,
            status: None,
            by_us,
            fenced,
            processor_microseconds: 0,
            peak_memory: 0,
            leftovers: 0,
            oom_killed: false,
            stdout: LogSize::default(),
            stderr: LogSize::default(),
        }
    }
}

/// What the guard tells a shim, one byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Terminate,
    Kill,
    Fence,
}

impl Order {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Order::Terminate => b'T',
            Order::Kill => b'K',
            Order::Fence => b'F',
        }
    }

    /// An unknown byte cannot come from a guard in its right mind; the safe reading is to kill.
    pub(super) fn from_byte(byte: u8) -> Self {
        match byte {
            b'T' => Order::Terminate,
            b'F' => Order::Fence,
            _ => Order::Kill,
        }
    }
}

/// A pair of connected sockets that no program inherits and no call waits on.
///
/// # Errors
/// Out of descriptors or memory.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends one message, and with it a descriptor.
///
/// # Errors
/// `WouldBlock` when the other side does not keep up, `BrokenPipe` when it is gone.
pub(super) fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    attached: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send_bytes(socket, &serde_json::to_vec(message)?, attached)
}

/// Sends one message that is bytes already.
///
/// # Errors
/// As [`send`].
pub(super) fn send_bytes(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    attached: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let descriptors: Vec<RawFd> = attached.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What came over a socket.
pub(super) enum Received<M> {
    Message(M, Option<OwnedFd>),
    /// The other side is gone.
    Closed,
}

/// Takes one message without waiting.
///
/// # Errors
/// `WouldBlock` when there is none, `InvalidData` when it is not one of ours.
pub(super) fn receive<M: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Received<M>> {
    let mut bytes = [0_u8; MESSAGE_LIMIT];
    let (length, attached) = match receive_bytes(socket, &mut bytes) {
        Ok(received) => received,
        Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => return Ok(Received::Closed),
        Err(error) => return Err(error),
    };
    if length == 0 {
        return Ok(Received::Closed);
    }
    let message = serde_json::from_slice(&bytes[..length])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Received::Message(message, attached))
}

fn receive_bytes(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; 4]);
    let mut buffer = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let received = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut buffer, Some(&mut control), flags) {
            Err(nix::Error::EINTR) => {}
            other => break other?,
        }
    };
    let mut attached = None;
    for message in received.cmsgs()? {
        let ControlMessageOwned::ScmRights(descriptors) = message else { continue };
        for descriptor in descriptors {
            // SAFETY: the kernel has just made it for us; whatever is too many is closed here by being dropped.
            attached = Some(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    if received.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message longer than the limit"));
    }
    Ok((received.bytes, attached))
}

/// A head of three numbers, then every text with a NUL behind it: the form in which launches and last wills lie in
/// memory files. In this form texts go to the kernel as they are; nothing is copied or parsed twice.
pub(super) struct TextsWriter {
    bytes: Vec<u8>,
}

const HEAD_LENGTH: usize = 24;

impl TextsWriter {
    pub(super) fn new(number: u64, arguments: usize, environment: usize) -> Self {
        let mut bytes = Vec::with_capacity(4096);
        for number in [number, arguments as u64, environment as u64] {
            bytes.extend(number.to_le_bytes());
        }
        TextsWriter { bytes }
    }

    /// Adds one text made of parts; `false` if it holds a NUL and so cannot be passed to any program.
    #[must_use]
    pub(super) fn add(&mut self, parts: &[&OsStr]) -> bool {
        let from = self.bytes.len();
        for part in parts {
            self.bytes.extend(part.as_bytes());
        }
        let whole = !self.bytes[from..].contains(&0);
        self.bytes.push(0);
        whole
    }

    /// Adds what is no text, behind all texts.
    pub(super) fn add_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Puts all into a memory file.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub(super) fn finish(self, name: &CStr) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&self.bytes)?;
        Ok(file.into())
    }
}

/// Takes apart what a [`TextsWriter`] has put together.
struct TextsReader<'a> {
    number: u64,
    arguments: u64,
    environment: u64,
    rest: &'a [u8],
}

impl<'a> TextsReader<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD_LENGTH)?;
        let number = |place: usize| Some(u64::from_le_bytes(head[place..place + 8].try_into().ok()?));
        Some(TextsReader { number: number(0)?, arguments: number(8)?, environment: number(16)?, rest })
    }

    fn next(&mut self) -> Option<&'a CStr> {
        let text = CStr::from_bytes_until_nul(self.rest).ok()?;
        self.rest = &self.rest[text.to_bytes_with_nul().len()..];
        Some(text)
    }

    /// Adds that many texts to `texts`.
    fn take(&mut self, count: u64, texts: &mut Vec<&'a CStr>) -> Option<()> {
        for _ in 0..count {
            texts.push(self.next()?);
        }
        Some(())
    }
}

/// The texts of a launch, as a memory file holds them.
pub(super) struct LaunchTexts {
    bytes: Vec<u8>,
}

/// A launch seen through the bytes of its memory file.
pub(super) struct LaunchView<'a> {
    pub(super) log_limit: u64,
    pub(super) stdout: &'a CStr,
    pub(super) stderr: &'a CStr,
    pub(super) directory: &'a CStr,
    pub(super) program: &'a CStr,
    /// The program's own name first, as a program expects it.
    pub(super) arguments: Vec<&'a CStr>,
    /// `NAME=value` each.
    pub(super) environment: Vec<&'a CStr>,
}

impl LaunchTexts {
    /// Reads a launch back from its memory file.
    ///
    /// # Errors
    /// The file cannot be read or is absurdly long.
    pub(super) fn read(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        let mut bytes = vec![0; length_within_limit(&file)?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(LaunchTexts { bytes })
    }

    /// Finds the texts; `None` when the bytes are not a launch.
    pub(super) fn view(&self) -> Option<LaunchView<'_>> {
        let mut texts = TextsReader::new(&self.bytes)?;
        let (stdout, stderr, directory) = (texts.next()?, texts.next()?, texts.next()?);
        let program = texts.next()?;
        let (mut arguments, mut environment) = (vec![program], vec![]);
        texts.take(texts.arguments, &mut arguments)?;
        texts.take(texts.environment, &mut environment)?;
        let log_limit = texts.number;
        let view = LaunchView { log_limit, stdout, stderr, directory, program, arguments, environment };
        texts.rest.is_empty().then_some(view)
    }
}

/// A last will seen through the bytes of its memory file.
pub(super) struct WillView<'a> {
    pub(super) patience: Duration,
    /// Absent for the guard's own executable.
    pub(super) program: Option<&'a CStr>,
    /// Without the program's own name.
    pub(super) arguments: Vec<&'a CStr>,
    /// `NAME=value` each.
    pub(super) environment: Vec<&'a CStr>,
    /// What the program reads from its standard input.
    pub(super) input: &'a [u8],
}

impl<'a> WillView<'a> {
    /// Finds the texts; `None` when the bytes are not a last will.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut texts = TextsReader::new(bytes)?;
        let program = Some(texts.next()?).filter(|program| !program.is_empty());
        let (mut arguments, mut environment) = (vec![], vec![]);
        texts.take(texts.arguments, &mut arguments)?;
        texts.take(texts.environment, &mut environment)?;
        let patience = Duration::from_millis(texts.number);
        Some(WillView { patience, program, arguments, environment, input: texts.rest })
    }
}

/// The length of a memory file in bytes.
///
/// # Errors
/// It cannot be had, or is absurd.
pub(super) fn length_within_limit(file: &File) -> io::Result<usize> {
    let length = file.metadata()?.len();
    if length > LENGTH_LIMIT {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    usize::try_from(length).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::fd::AsFd;

    fn texts(bytes: Vec<u8>) -> LaunchTexts {
        LaunchTexts { bytes }
    }

    #[test]
    fn a_launch_comes_out_as_it_went_in() {
        let mut writer = TextsWriter::new(77, 2, 1);
        for text in ["/out", "/err", "/dir", "/bin/p", "first", ""] {
            assert!(writer.add(&[OsStr::new(text)]));
        }
        assert!(writer.add(&[OsStr::new("A"), OsStr::new("="), OsStr::from_bytes(b"\xff")]));
        let read = LaunchTexts::read(writer.finish(c"t").expect("file")).expect("read");
        let view = read.view().expect("a launch");
        assert_eq!(view.log_limit, 77);
        assert_eq!((view.stdout, view.stderr, view.directory), (c"/out", c"/err", c"/dir"));
        assert_eq!(view.arguments, [c"/bin/p", c"first", c""]);
        assert_eq!(view.environment, [c"A=\xff"]);
    }

    #[test]
    fn a_text_with_a_nul_is_noticed() {
        assert!(!TextsWriter::new(0, 0, 0).add(&[OsStr::new("a\0b")]));
    }

    #[test]
    fn bytes_that_are_no_launch_are_refused_at_every_length() {
        let mut writer = TextsWriter::new(1, 1, 1);
        for text in ["/out", "/err", "/dir", "/bin/p", "a", "A=1"] {
            assert!(writer.add(&[OsStr::new(text)]));
        }
        let whole = writer.bytes;
        assert!(texts(whole.clone()).view().is_some());
        for length in 0..whole.len() {
            assert!(texts(whole[..length].to_vec()).view().is_none(), "{length}");
        }
        let mut longer = whole.clone();
        longer.push(b'x');
        assert!(texts(longer).view().is_none());
        let mut greedy = whole;
        greedy[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(texts(greedy).view().is_none());
    }

    #[test]
    fn a_last_will_comes_out_as_it_went_in_and_no_shorter_one_is_taken_for_it() {
        let mut writer = TextsWriter::new(1500, 1, 1);
        for text in ["", "argument", "A=1"] {
            assert!(writer.add(&[OsStr::new(text)]));
        }
        let without_input = writer.bytes.len();
        writer.add_bytes(b"in\0put");
        let bytes = writer.bytes;
        let will = WillView::of(&bytes).expect("a will");
        assert_eq!((will.patience, will.program), (Duration::from_millis(1500), None));
        assert_eq!((will.arguments, will.environment), (vec![c"argument"], vec![c"A=1"]));
        assert_eq!(will.input, b"in\0put");
        for length in 0..without_input {
            assert!(WillView::of(&bytes[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn a_message_brings_its_descriptor_and_the_end_is_seen() {
        let (near, far) = pair().expect("sockets");
        let attached = memfd_create(c"t", MFdFlags::MFD_CLOEXEC).expect("file");
        send(near.as_fd(), &Command::Launch { id: u64::MAX }, Some(attached.as_fd())).expect("sent");
        let Received::Message(Command::Launch { id: u64::MAX }, Some(_)) =
            receive(far.as_fd()).expect("received")
        else {
            panic!("another message");
        };
        let nothing = receive::<Command>(far.as_fd()).err().expect("nothing there");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        drop(near);
        assert!(matches!(receive::<Command>(far.as_fd()), Ok(Received::Closed)));
    }

    #[test]
    fn garbage_is_an_error_and_not_a_message() {
        let (near, far) = pair().expect("sockets");
        for garbage in [&b"\xff\xfe"[..], b"{\"launch\":{}}", b"[1,2", &[b'x'; MESSAGE_LIMIT + 1]] {
            send_bytes(near.as_fd(), garbage, None).expect("sent");
            let error = receive::<Command>(far.as_fd()).err().expect("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
