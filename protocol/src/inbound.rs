//! What the broker sends, before the client library reads it.
//!
//! A broker hands on whatever a publisher puts into a message's properties. The client library takes them for text in UTF-8, as
//! AMQP 0-9-1 says of short strings, and reads tables within tables by calling itself. One message whose correlation id is
//! sixteen raw bytes would end the connection of every worker that it is offered to, one after the other and for ever; one with
//! some thousand tables within each other would end the process. So both are put right on the way in, each in the bytes that it
//! takes: what is no text gets question marks, which no job's id may have, and a table too deep becomes a string. Of properties
//! that are more than the client library takes in a frame, the large headers are left out.
//!
//! ```text
//! frame = type (1) channel (2) size (4) payload (size) 0xCE      type: 1 method, 2 header, 3 body, 8 heartbeat
//! ```
//!
//! (AMQP 0-9-1, sections 2.3.5 and 4.2.5; the types of values are those of RabbitMQ's errata.)
//!
//! This module must not know what is sent over the connection. What it cannot follow it hands on as it is.

use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::AsyncTcpStream;

use crate::connect::FRAME_MAX;

/// How many bytes are read at once.
const CHUNK: usize = 64 * 1024;
/// The largest frame that is looked into, in bytes. RabbitMQ never cuts properties into several frames: those that came by
/// another protocol than AMQP 0-9-1 may be as large as it takes a message.
const LARGEST: usize = 512 * 1024 * 1024;
/// How many tables and arrays may be within each other.
const DEEPEST: u32 = 64;
/// The largest header that is kept where there are too many of them for a frame, in bytes.
const SMALL: usize = 1024;
/// What is in front of a frame's payload, and what is behind it.
const HEAD: usize = 7;
const END: usize = 1;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
/// The flag by which a message has headers.
const HEADERS: u64 = 0x2000;
/// The class of messages.
const BASIC: u64 = 60;
/// Methods, by the numbers of their class and their own.
const DELIVER: (u64, u64) = (BASIC, 60);
const GET_OK: (u64, u64) = (BASIC, 71);
const RETURN: (u64, u64) = (BASIC, 50);
const CONNECTION_CLOSE: (u64, u64) = (10, 50);
const CHANNEL_CLOSE: (u64, u64) = (20, 40);

/// What a connection of the client library's runs on: Tokio, and streams whose other side has been put right.
pub(crate) type Parts = RuntimeParts<Tokio, Readable>;

/// The runtime for a connection.
pub(crate) fn runtime() -> Runtime<Parts> {
    Runtime::new(RuntimeParts::new(Tokio::current(), Readable(Tokio::current())))
}

/// Opens streams that can be read by the client library whatever publishers have sent.
#[derive(Debug, Clone)]
pub(crate) struct Readable(Tokio);

impl Reactor for Readable {
    type TcpStream = Inbound;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Inbound::new(AsyncTcpStream::Plain(connecting.await?))) }
    }
}

/// A stream of the broker's, put right.
pub(crate) struct Inbound {
    stream: AsyncTcpStream<<Tokio as Reactor>::TcpStream>,
    chunk: Box<[u8]>,
    frames: Frames,
}

impl Inbound {
    pub(crate) fn new(stream: AsyncTcpStream<<Tokio as Reactor>::TcpStream>) -> Self {
        Self { stream, chunk: vec![0; CHUNK].into_boxed_slice(), frames: Frames::default() }
    }
}

impl AsyncRead for Inbound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, chunk, frames } = &mut *self;
        loop {
            let given = frames.give(buffer);
            if given > 0 || buffer.is_empty() {
                return Poll::Ready(Ok(given));
            }
            let read = ready!(Pin::new(&mut *stream).poll_read(context, chunk))?;
            if read == 0 && !frames.cut_off() {
                return Poll::Ready(Ok(0));
            }
            frames.take(&chunk[..read]);
        }
    }
}

impl AsyncWrite for Inbound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// The frames of a stream, taken in any pieces and given in any others.
#[derive(Debug, Default)]
struct Frames {
    /// What can be given, from `given` on.
    ready: Vec<u8>,
    given: usize,
    /// The frame that is not there whole yet, as far as it has come; of one that is not looked into, its head at most.
    frame: Vec<u8>,
    /// How many more bytes of a frame that is not looked into are to come.
    passing: usize,
}

impl Frames {
    fn give(&mut self, buffer: &mut [u8]) -> usize {
        let left = &self.ready[self.given..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.given += count;
        if self.given == self.ready.len() {
            self.ready.clear();
            // A burst of large frames is no reason to keep so much for ever.
            self.ready.shrink_to(CHUNK);
            self.given = 0;
        }
        count
    }

    /// Has the part of a frame that is there given as it is, since nothing more comes; tells whether there is one.
    fn cut_off(&mut self) -> bool {
        self.ready.append(&mut self.frame);
        self.given < self.ready.len()
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let (passed, rest) = bytes.split_at(self.passing.min(bytes.len()));
                self.ready.extend_from_slice(passed);
                self.passing -= passed.len();
                bytes = rest;
                continue;
            }
            let wanted = self.size().map_or(HEAD, |size| HEAD + size + END);
            let (taken, rest) = bytes.split_at((wanted - self.frame.len()).min(bytes.len()));
            self.frame.extend_from_slice(taken);
            bytes = rest;
            let Some(size) = self.size() else { continue };
            let kind = self.frame[0];
            if !matches!(kind, METHOD | HEADER) || size > LARGEST {
                self.ready.append(&mut self.frame);
                self.passing = size + END;
            } else if self.frame.len() == HEAD + size + END {
                let payload = &mut self.frame[HEAD..HEAD + size];
                // What cannot be followed is left as it is.
                let _ = if kind == HEADER { put_header_right(payload) } else { put_method_right(payload) };
                if kind == HEADER
                    && self.frame.len() > FRAME_MAX as usize
                    && let Some(fitting) = with_small_headers(&self.frame)
                {
                    tracing::warn!(
                        bytes = self.frame.len(),
                        "a message's headers are too large, with what the broker has added to them; the large ones are left out"
                    );
                    self.frame = fitting;
                }
                self.ready.append(&mut self.frame);
                self.frame.shrink_to(CHUNK);
            }
        }
    }

    /// How large the payload of the frame is, once its head is there.
    fn size(&self) -> Option<usize> {
        let size = self.frame.get(3..HEAD)?.try_into().ok().map(u32::from_be_bytes)?;
        usize::try_from(size).ok()
    }
}

/// Puts the properties of a message right; `None` where they are not what they should be.
fn put_header_right(payload: &mut [u8]) -> Option<()> {
    let mut at = Place { bytes: payload, position: 0 };
    if at.number::<2>()? != BASIC {
        return None;
    }
    at.skip(2 + 8)?;
    let flags = at.number::<2>()?;
    let has = |property: u32| flags & (0x8000 >> property) != 0;
    for property in (0..14).filter(|property| has(*property)) {
        match property {
            // Headers; delivery mode and priority; time. All others are text.
            2 => at.table(1)?,
            3 | 4 => at.skip(1)?,
            9 => at.skip(8)?,
            _ => at.short_string()?,
        }
    }
    Some(())
}

/// The frame of a message's properties with the small ones of its headers alone, those first that the broker may have added:
/// it does so also where they have no more room in a frame, and the client library ends the connection then.
fn with_small_headers(frame: &[u8]) -> Option<Vec<u8>> {
    const FLAGS: usize = 2 + 2 + 8;
    let mut payload = frame.get(HEAD..frame.len() - END)?.to_vec();
    let mut at = Place { bytes: &mut payload, position: FLAGS };
    let flags = at.number::<2>()?;
    if flags & HEADERS == 0 {
        return None;
    }
    for property in 0..2 {
        if flags & (0x8000 >> property) != 0 {
            at.short_string()?;
        }
    }
    let begin = at.position;
    let end = at.length()?.checked_add(at.position)?;
    let first = at.position;
    let mut table = Vec::new();
    for is_of_the_broker in [true, false] {
        at.position = first;
        while at.position < end {
            let entry = at.position;
            at.short_string()?;
            at.value(1)?;
            let entry = &at.bytes[entry..at.position];
            let fits = entry.len() <= SMALL && table.len() + entry.len() <= FRAME_MAX as usize / 2;
            if fits && entry[1..].starts_with(b"x-") == is_of_the_broker {
                table.extend_from_slice(entry);
            }
        }
    }
    let length = u32::try_from(table.len()).ok()?.to_be_bytes();
    payload.splice(begin..end, length.into_iter().chain(table));
    let size = u32::try_from(payload.len()).ok()?.to_be_bytes();
    Some([&frame[..3], &size, &payload, &frame[frame.len() - END..]].concat())
}

/// Puts right what a publisher can choose of the methods that come with a message, its routing key and exchange, and the
/// reasons for which something is closed, which name what they are about and are cut off after so many bytes.
fn put_method_right(payload: &mut [u8]) -> Option<()> {
    let mut at = Place { bytes: payload, position: 0 };
    match (at.number::<2>()?, at.number::<2>()?) {
        DELIVER => {
            at.short_string()?;
            at.skip(8 + 1)?;
        }
        GET_OK => at.skip(8 + 1)?,
        RETURN => {
            at.skip(2)?;
            at.short_string()?;
        }
        CONNECTION_CLOSE | CHANNEL_CLOSE => {
            at.skip(2)?;
            return at.short_string();
        }
        _ => return None,
    }
    at.short_string()?;
    at.short_string()
}

/// A place in a payload that is put right on the way.
struct Place<'a> {
    bytes: &'a mut [u8],
    position: usize,
}

impl Place<'_> {
    fn next(&mut self, count: usize) -> Option<&mut [u8]> {
        let end = self.position.checked_add(count)?;
        let next = self.bytes.get_mut(self.position..end)?;
        self.position = end;
        Some(next)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.next(count).map(|_| ())
    }

    /// A number of `SIZE` bytes.
    fn number<const SIZE: usize>(&mut self) -> Option<u64> {
        Some(self.next(SIZE)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.number::<4>()?).ok()
    }

    fn short_string(&mut self) -> Option<()> {
        let length = self.next(1)?[0];
        let mut text = self.next(usize::from(length))?;
        while let Err(error) = std::str::from_utf8(text) {
            let bad = error.error_len().unwrap_or(text.len() - error.valid_up_to());
            text = &mut text[error.valid_up_to()..];
            text[..bad].fill(b'?');
        }
        Some(())
    }

    /// A table, which is the `depth`th within each other.
    fn table(&mut self, depth: u32) -> Option<()> {
        let end = self.length()?.checked_add(self.position)?;
        while self.position < end {
            self.short_string()?;
            self.value(depth)?;
        }
        (self.position == end).then_some(())
    }

    fn array(&mut self, depth: u32) -> Option<()> {
        let end = self.length()?.checked_add(self.position)?;
        while self.position < end {
            self.value(depth)?;
        }
        (self.position == end).then_some(())
    }

    /// A value of a table or an array, which is the `depth`th within each other.
    fn value(&mut self, depth: u32) -> Option<()> {
        let kind = &mut self.next(1)?[0];
        if depth >= DEEPEST && matches!(kind, b'F' | b'A') {
            // It has its length in front, as a string does.
            *kind = b'S';
        }
        match *kind {
            b'V' => Some(()),
            b't' | b'b' | b'B' => self.skip(1),
            b's' | b'u' | b'U' => self.skip(2),
            b'I' | b'i' | b'f' => self.skip(4),
            b'D' => self.skip(5),
            b'L' | b'l' | b'd' | b'T' => self.skip(8),
            b'S' | b'x' => {
                let length = self.length()?;
                self.skip(length)
            }
            b'F' => self.table(depth + 1),
            b'A' => self.array(depth + 1),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amq_protocol::frame::{AMQPFrame, parse_frame};

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[0xce]].concat()
    }

    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()][..], text].concat()
    }

    fn long(kind: u8, content: &[u8]) -> Vec<u8> {
        [&[kind][..], &u32::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
    }

    /// The frame of a header with these properties.
    fn header(flags: u16, properties: &[u8]) -> Vec<u8> {
        let fixed = [&60_u16.to_be_bytes()[..], &[0, 0], &2_u64.to_be_bytes(), &flags.to_be_bytes()].concat();
        frame(HEADER, &[fixed, properties.to_vec()].concat())
    }

    fn with_headers(table: &[u8]) -> Vec<u8> {
        header(0x2000, &long(b'F', table)[1..])
    }

    /// What comes out of these bytes when they come in pieces of `size`, and are asked for by as many.
    fn through(bytes: &[u8], size: usize) -> Vec<u8> {
        let (mut frames, mut out, mut buffer) = (Frames::default(), Vec::new(), vec![0; size]);
        let mut drain = |frames: &mut Frames| loop {
            match frames.give(&mut buffer) {
                0 => break,
                count => out.extend_from_slice(&buffer[..count]),
            }
        };
        for piece in bytes.chunks(size) {
            frames.take(piece);
            drain(&mut frames);
        }
        frames.cut_off();
        drain(&mut frames);
        out
    }

    fn deep(levels: usize) -> Vec<u8> {
        (0..levels).fold(Vec::new(), |inner, _| [short(b"k"), long(b'F', &inner)].concat())
    }

    fn parsed(bytes: &[u8]) -> AMQPFrame {
        let (rest, frame) = parse_frame(bytes).unwrap();
        assert!(rest.is_empty());
        frame
    }

    #[test]
    fn what_is_no_text_gets_question_marks_and_the_rest_stays_as_it_was() {
        let text = [short(b"a\xff\x00\xfe"), short("\u{e9}".as_bytes())].concat();
        // Content type and encoding, and then a delivery mode, a time and an id.
        let properties = [&text[..], &[2], &short(b"\x80\x81")[..], &[0; 8], &short(b"id")[..]].concat();
        let right =
            [short(b"a?\x00?"), short("\u{e9}".as_bytes()), vec![2], short(b"??"), vec![0; 8], short(b"id")]
                .concat();
        let flags = 0x8000 | 0x4000 | 0x1000 | 0x0400 | 0x0040 | 0x0008;
        assert_eq!(through(&header(flags, &properties), 4096), header(flags, &right));
        parsed(&header(flags, &right));
    }

    #[test]
    fn keys_in_tables_and_arrays_are_text_and_values_are_what_they_were() {
        let values = |key: &[u8]| {
            let inner = [short(key), long(b'S', b"\xff\xfe")].concat();
            let array = [long(b'F', &inner), vec![b'V'], vec![b'D', 1, 0xff, 0xff, 0xff, 0xff]].concat();
            [
                short(key),
                vec![b't', 1],
                short(b"b"),
                vec![b's', 0xff, 0xff],
                short(b"c"),
                vec![b'I', 0xff, 0xff, 0xff, 0xff],
                short(b"d"),
                [&b"l"[..], &[0xff; 8]].concat(),
                short(b"e"),
                long(b'A', &array),
                short(b"f"),
                long(b'x', b"\xff"),
            ]
            .concat()
        };
        let right = with_headers(&values(b"k?"));
        assert_eq!(through(&with_headers(&values(b"k\xff")), 4096), right);
        parsed(&right);
    }

    #[test]
    fn tables_too_deep_become_strings_of_the_same_bytes() {
        let few = with_headers(&deep(usize::try_from(DEEPEST).unwrap() - 1));
        assert_eq!(through(&few, 4096), few);
        let many = with_headers(&deep(18_000));
        let out = through(&many, 4096);
        assert_eq!(out.len(), many.len());
        let changed: Vec<_> = many.iter().zip(&out).filter(|(before, after)| before != after).collect();
        assert_eq!(changed, [(&b'F', &b'S')]);
        parsed(&out);
    }

    #[test]
    fn of_headers_that_fit_into_no_frame_the_small_ones_are_left_those_of_the_broker_first() {
        let most = FRAME_MAX as usize;
        let message = |headers: &[u8]| {
            let before = [short(b"text/plain"), short(b"gzip")].concat();
            header(0xe080, &[&before[..], &long(b'F', headers)[1..], &short(b"id")].concat())
        };
        let one = |name: &[u8], bytes: usize| [short(name), long(b'S', &vec![b'v'; bytes])].concat();
        let large = |bytes: usize| [one(b"a", 5), one(b"k", bytes), one(b"x-first-death-reason", 7)].concat();
        let rest = message(&large(0)).len();
        let fits = message(&large(most - rest));
        assert_eq!(fits.len(), most);
        assert_eq!(through(&fits, 4096), fits);
        let left = message(&[one(b"x-first-death-reason", 7), one(b"a", 5)].concat());
        assert_eq!(through(&message(&large(most - rest + 1)), 4096), left);
        parsed(&left);
        assert_eq!(through(&message(&large(3 << 20)), CHUNK), left);
        // And many small ones.
        let many: Vec<u8> = (0..2000).flat_map(|_| one(b"k", 100)).chain(one(b"x-reason", 7)).collect();
        let out = through(&message(&many), 4096);
        assert!((most / 3..most).contains(&out.len()) && out.windows(8).any(|bytes| bytes == b"x-reason"));
        parsed(&out);
    }

    #[test]
    fn a_routing_key_that_is_no_text_gets_question_marks() {
        let deliver = |key: &[u8]| {
            let method = [&60_u16.to_be_bytes()[..], &60_u16.to_be_bytes()].concat();
            frame(METHOD, &[method, short(b"tag"), vec![0; 9], short(b"x"), short(key)].concat())
        };
        assert_eq!(through(&deliver(b"job.\xf0\x9f"), 4096), deliver(b"job.??"));
    }

    #[test]
    fn a_reason_that_is_cut_off_within_a_character_gets_a_question_mark() {
        for (class, method) in [(10_u16, 50_u16), (20, 40)] {
            let close = |reason: &[u8]| {
                let numbers = [class.to_be_bytes(), method.to_be_bytes(), 404_u16.to_be_bytes()].concat();
                frame(METHOD, &[numbers, short(reason), vec![0; 4]].concat())
            };
            assert_eq!(through(&close(b"no queue \xc3"), 4096), close(b"no queue ?"));
        }
    }

    #[test]
    fn bodies_and_what_is_not_understood_pass_as_they_are_in_pieces_of_any_size() {
        let frames = [
            frame(METHOD, &[0, 10, 0, 10, 0xff]),
            header(0x8000, &short(b"text/plain")),
            frame(3, &[0xff; 3000]),
            frame(8, &[]),
            header(0x8000, &[200, 1]),
            header(0x2000, &[0xff, 0xff, 0xff, 0xff]),
            with_headers(&[short(b"k"), vec![b'?']].concat()),
            frame(HEADER, &[]),
            frame(3, &[]),
            b"AMQP\x00\x00\x09\x01".to_vec(),
        ]
        .concat();
        for size in [1, 2, 7, 8, 100, 4096, CHUNK] {
            assert_eq!(through(&frames, size), frames, "{size}");
            // Cut off anywhere.
            for cut in (0..frames.len()).step_by(97) {
                assert_eq!(through(&frames[..cut], size), frames[..cut], "{size} {cut}");
            }
        }
    }
}
