//! A small NBD client that can also misbehave.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use redirector::nbd::wire::{
    self, Drain, DrainReply, End, EndReply, Hello, HelloReply, OptionReplyHeader, RequestHeader, SimpleReply,
    cmd, opt, rep,
};
use zerocopy::{FromBytes, IntoBytes};

pub struct Peer {
    pub stream: UnixStream,
}

/// The replies to an option before its ACK: type and payload.
pub type Replies = Vec<(u32, Vec<u8>)>;

/// A request's fate: the protocol's error number (zero is none), or a lost connection.
pub type Answer = io::Result<u32>;

impl Peer {
    pub fn connect(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        // No test may hang.
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        Self { stream }
    }

    pub fn send_option(&mut self, option: u32, payload: &[u8]) {
        let mut bytes = wire::OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend(payload);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends an option; returns the replies before the ACK, or the error's type and text.
    pub fn option(&mut self, option: u32, payload: &[u8]) -> Result<Replies, (u32, String)> {
        self.send_option(option, payload);
        let mut replies = Vec::new();
        loop {
            let mut header = [0; 20];
            self.stream.read_exact(&mut header).map_err(|error| (0, error.to_string()))?;
            let header = OptionReplyHeader::read_from_bytes(&header).unwrap();
            assert_eq!(header.magic, wire::OPTION_REPLY_MAGIC);
            assert_eq!(header.option, option);
            let mut payload = vec![0; header.length.get() as usize];
            self.stream.read_exact(&mut payload).unwrap();
            match header.kind.get() {
                rep::ACK => return Ok(replies),
                kind if kind & rep::ERROR != 0 => {
                    return Err((kind, String::from_utf8(payload).unwrap()));
                }
                kind => replies.push((kind, payload)),
            }
        }
    }

    pub fn hello(&mut self, client: u64, cookie: [u8; 16]) -> Result<HelloReply, u32> {
        let hello =
            Hello { version: 1.into(), reserved: 0.into(), flags: 0.into(), client: client.into(), cookie };
        let replies = self.option(opt::HELLO, hello.as_bytes()).map_err(|(kind, _)| kind)?;
        assert_eq!(replies[0].0, opt::HELLO);
        Ok(HelloReply::read_from_prefix(&replies[0].1).unwrap().0)
    }

    pub fn drain(&mut self, client: u64, cookie: [u8; 16]) -> Result<DrainReply, u32> {
        let drain = Drain { client: client.into(), cookie };
        let replies = self.option(opt::DRAIN, drain.as_bytes()).map_err(|(kind, _)| kind)?;
        Ok(DrainReply::read_from_bytes(&replies[0].1).unwrap())
    }

    pub fn end(&mut self, client: u64) -> Result<(EndReply, String), u32> {
        let end = End { client: client.into() };
        let replies = self.option(opt::END, end.as_bytes()).map_err(|(kind, _)| kind)?;
        let (reply, text) = EndReply::read_from_prefix(&replies[0].1).unwrap();
        Ok((reply, String::from_utf8(text.to_vec()).unwrap()))
    }

    pub fn go(&mut self) -> Result<Replies, (u32, String)> {
        self.option(opt::GO, b"\0\0\0\x03vms\0\0")
    }

    pub fn send(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32, data: &[u8]) {
        self.try_send(command, flags, cookie, offset, length, data).unwrap();
    }

    fn try_send(
        &mut self,
        command: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<()> {
        let header = RequestHeader {
            magic: wire::REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: cookie.into(),
            offset: offset.into(),
            length: length.into(),
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(data);
        self.stream.write_all(&bytes)
    }

    /// The next simple reply: cookie and error.
    pub fn reply(&mut self) -> io::Result<(u64, u32)> {
        let mut bytes = [0; 16];
        self.stream.read_exact(&mut bytes)?;
        let reply = SimpleReply::read_from_bytes(&bytes).unwrap();
        assert_eq!(reply.magic, wire::SIMPLE_REPLY_MAGIC);
        Ok((reply.cookie.get(), reply.error.get()))
    }

    fn request(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> Answer {
        self.try_send(command, flags, 77, offset, length, data)?;
        let (cookie, error) = self.reply()?;
        assert_eq!(cookie, 77);
        Ok(error)
    }

    pub fn send_write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        self.send(cmd::WRITE, 0, cookie, offset, u32::try_from(data.len()).unwrap(), data);
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Answer {
        self.write_with(0, offset, data)
    }

    pub fn write_with(&mut self, flags: u16, offset: u64, data: &[u8]) -> Answer {
        self.request(cmd::WRITE, flags, offset, u32::try_from(data.len()).unwrap(), data)
    }

    pub fn flush(&mut self) -> Answer {
        self.request(cmd::FLUSH, 0, 0, 0, &[])
    }

    pub fn trim(&mut self, offset: u64, length: u32) -> Answer {
        self.request(cmd::TRIM, 0, offset, length, &[])
    }

    pub fn zero(&mut self, flags: u16, offset: u64, length: u32) -> Answer {
        self.request(cmd::WRITE_ZEROES, flags, offset, length, &[])
    }

    pub fn read_error(&mut self, offset: u64, length: u32) -> Answer {
        self.request(cmd::READ, 0, offset, length, &[])
    }

    pub fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let error = self.read_error(offset, u32::try_from(length).unwrap())?;
        assert_eq!(error, 0);
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Whether the target has closed the connection; waits for it.
    pub fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            Ok(_) => false,
        }
    }
}
