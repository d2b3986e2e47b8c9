//! What goes over the sockets between worker, guard and shims.
//!
//! The sockets are of kind SEQPACKET: one message is one packet, so nothing is ever half read. Messages are small JSON
//! texts; the texts of a launch follow the `launch` command behind a NUL, or, as they may be megabytes, lie in a memory
//! file whose descriptor rides on it, and are read by its shim alone. A last will always travels as a memory file. This
//! module must not know what the messages mean.

use std::borrow::Cow;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
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

/// Longest packet in bytes.
const PACKET_LIMIT: usize = 16 * 1024;

/// Longest texts in bytes that travel in a packet; the message before them has some hundred bytes.
const INLINE_LIMIT: usize = PACKET_LIMIT - 1024;

/// Longest memory file in bytes. The kernel itself takes far less for arguments and environment.
const LENGTH_LIMIT: u64 = 64 * 1024 * 1024;

/// What the worker tells the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Command {
    /// Start what comes along, but not at this moment of CLOCK_BOOTTIME or later.
    Launch { id: u64, not_after: Option<u64> },
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

/// Puts a message into the bytes of a packet.
///
/// # Errors
/// None for messages of this module.
pub(super) fn packet<M: Serialize>(message: &M, attached: Option<&Attachment>) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message)?;
    if let Some(Attachment::Inline(texts)) = attached {
        bytes.reserve_exact(1 + texts.len());
        bytes.push(0);
        bytes.extend(texts);
    }
    Ok(bytes)
}

/// Sends one message with what belongs to it.
///
/// # Errors
/// As [`send_bytes`].
pub(super) fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    attached: Option<&Attachment>,
) -> io::Result<()> {
    let file = match attached {
        Some(Attachment::File(file)) => Some(file.as_fd()),
        _ => None,
    };
    send_bytes(socket, &packet(message, attached)?, file)
}

/// Sends one packet, and with it a descriptor.
///
/// # Errors
/// `WouldBlock` when the other side does not keep up, `BrokenPipe` when it is gone.
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

/// What came over a socket: a message, and what came along with it.
pub(super) struct Packet<'a> {
    /// As it came.
    pub(super) bytes: &'a [u8],
    pub(super) attached: Option<OwnedFd>,
}

impl<'a> Packet<'a> {
    /// The message.
    ///
    /// # Errors
    /// `InvalidData` when it is not one of ours.
    pub(super) fn message<M: DeserializeOwned>(&self) -> io::Result<M> {
        serde_json::from_slice(self.parts().0)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The texts of a launch, wherever they are.
    ///
    /// # Errors
    /// There are none, they cannot be read, or are absurdly long.
    pub(super) fn into_texts(self) -> io::Result<Cow<'a, [u8]>> {
        match (self.parts().1, self.attached) {
            (Some(texts), _) => Ok(Cow::Borrowed(texts)),
            (None, Some(file)) => read_whole(&File::from(file)).map(Cow::Owned),
            (None, None) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// No JSON text holds a NUL.
    fn parts(&self) -> (&'a [u8], Option<&'a [u8]>) {
        match self.bytes.iter().position(|byte| *byte == 0) {
            Some(end) => (&self.bytes[..end], Some(&self.bytes[end + 1..])),
            None => (self.bytes, None),
        }
    }
}

/// Where packets are received.
pub(super) struct Inbox {
    buffer: Vec<u8>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Inbox { buffer: vec![0; PACKET_LIMIT] }
    }

    /// Takes one packet without waiting; `None` when the other side is gone.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, `InvalidData` when it is longer than any of ours.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<Packet<'_>>> {
        let (length, attached) = match receive_bytes(socket, &mut self.buffer) {
            Ok(received) => received,
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok((length > 0).then(|| Packet { bytes: &self.buffer[..length], attached }))
    }
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

/// A head of three numbers, then every text with a NUL behind it: the form in which launches and last wills travel. In
/// this form texts go to the kernel as they are; nothing is copied or parsed twice.
pub(super) struct TextsWriter {
    bytes: Vec<u8>,
}

/// What comes along with a message.
#[derive(Debug)]
pub(super) enum Attachment {
    Inline(Vec<u8>),
    File(OwnedFd),
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

    /// Gives all as it is when it is short, and otherwise in a memory file.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub(super) fn finish(self) -> io::Result<Attachment> {
        if self.bytes.len() <= INLINE_LIMIT {
            Ok(Attachment::Inline(self.bytes))
        } else {
            self.finish_as_file()
        }
    }

    /// Puts all into a memory file.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub(super) fn finish_as_file(self) -> io::Result<Attachment> {
        let mut file = File::from(memfd_create(c"spark-guard", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&self.bytes)?;
        Ok(Attachment::File(file.into()))
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

/// A launch seen through its bytes.
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

impl<'a> LaunchView<'a> {
    /// Finds the texts; `None` when the bytes are not a launch.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut texts = TextsReader::new(bytes)?;
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

/// Reads a memory file.
///
/// # Errors
/// It cannot be read or is absurdly long.
fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length_within_limit(file)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
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

    fn writer(number: u64, texts: &[&str]) -> TextsWriter {
        let mut writer = TextsWriter::new(number, 1, 1);
        for text in texts {
            assert!(writer.add(&[OsStr::new(text)]));
        }
        writer
    }

    #[test]
    fn a_launch_comes_out_as_it_went_in_however_it_travels() {
        for length in [1, INLINE_LIMIT - 100, INLINE_LIMIT, 3_000_000] {
            let argument = "x".repeat(length);
            let mut writer = TextsWriter::new(77, 2, 1);
            for text in ["/out", "/err", "/dir", "/bin/p", &argument, ""] {
                assert!(writer.add(&[OsStr::new(text)]));
            }
            assert!(writer.add(&[OsStr::new("A"), OsStr::new("="), OsStr::from_bytes(b"\xff")]));
            let (near, far) = pair().expect("sockets");
            let attachment = writer.finish().expect("finished");
            send(near.as_fd(), &Command::Launch { id: 5, not_after: None }, Some(&attachment)).expect("sent");
            let mut inbox = Inbox::new();
            let packet = inbox.receive(far.as_fd()).expect("received").expect("there");
            assert_eq!(
                packet.message::<Command>().expect("a command"),
                Command::Launch { id: 5, not_after: None }
            );
            assert_eq!(packet.attached.is_none(), length < INLINE_LIMIT, "{length}");
            let texts = packet.into_texts().expect("texts");
            let view = LaunchView::of(&texts).expect("a launch");
            assert_eq!(view.log_limit, 77);
            assert_eq!((view.stdout, view.stderr, view.directory), (c"/out", c"/err", c"/dir"));
            assert_eq!((view.program, view.arguments.len()), (c"/bin/p", 3));
            assert_eq!((view.arguments[0], view.arguments[2]), (c"/bin/p", c""));
            assert_eq!(view.arguments[1].to_bytes(), argument.as_bytes());
            assert_eq!(view.environment, [c"A=\xff"]);
        }
    }

    #[test]
    fn a_text_with_a_nul_is_noticed() {
        assert!(!TextsWriter::new(0, 0, 0).add(&[OsStr::new("a\0b")]));
    }

    #[test]
    fn bytes_that_are_no_launch_are_refused_at_every_length() {
        let whole = writer(1, &["/out", "/err", "/dir", "/bin/p", "a", "A=1"]).bytes;
        assert!(LaunchView::of(&whole).is_some());
        for length in 0..whole.len() {
            assert!(LaunchView::of(&whole[..length]).is_none(), "{length}");
        }
        let mut longer = whole.clone();
        longer.push(b'x');
        assert!(LaunchView::of(&longer).is_none());
        let mut greedy = whole;
        greedy[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(LaunchView::of(&greedy).is_none());
    }

    #[test]
    fn a_last_will_comes_out_as_it_went_in_and_no_shorter_one_is_taken_for_it() {
        let mut writer = writer(1500, &["", "argument", "A=1"]);
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
        let file = writer(1, &[]).finish_as_file().expect("file");
        send(near.as_fd(), &Command::LastWill, Some(&file)).expect("sent");
        let mut inbox = Inbox::new();
        let packet = inbox.receive(far.as_fd()).expect("received").expect("there");
        assert_eq!(packet.message::<Command>().expect("a command"), Command::LastWill);
        assert!(packet.attached.is_some());
        let nothing = inbox.receive(far.as_fd()).err().expect("nothing there");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        drop(near);
        assert!(inbox.receive(far.as_fd()).expect("received").is_none());
    }

    #[test]
    fn garbage_is_an_error_and_not_a_message() {
        let (near, far) = pair().expect("sockets");
        let mut inbox = Inbox::new();
        for garbage in [&b"\xff\xfe"[..], b"{\"launch\":{}}", b"[1,2", b"\0", &[b'x'; PACKET_LIMIT + 1]] {
            send_bytes(near.as_fd(), garbage, None).expect("sent");
            let received = inbox.receive(far.as_fd());
            let message = received.and_then(|packet| packet.expect("there").message::<Command>());
            assert_eq!(message.expect_err("refused").kind(), io::ErrorKind::InvalidData);
        }
    }
}
