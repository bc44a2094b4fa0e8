//! A scripted NBD server inside the test: it can swallow requests and let them land later, lose its cache, change its
//! size, and speaks the private options.

use std::io::{Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use redirector::nbd::wire::{self, cmd, export_flag, info, opt, rep};
use zerocopy::{FromBytes, IntoBytes};

pub const SIZE: usize = 4 << 20;

/// A request that was received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub connection: usize,
    pub command: u16,
    pub offset: u64,
    pub length: u32,
    pub fua: bool,
    pub data: Vec<u8>,
}

/// What the test may change at any time.
#[derive(Debug)]
pub struct Script {
    pub size: u64,
    /// What reads see.
    pub disk: Vec<u8>,
    /// What survives a restart.
    pub durable: Vec<u8>,
    /// Says who it is, if it is a csv-target.
    pub boot: Option<[u8; 16]>,
    pub multi_conn: bool,
    pub drained: u8,
    /// Requests of this command are accepted, and neither executed nor answered.
    pub swallow: Option<u16>,
    pub swallowed: Vec<Seen>,
    /// Connections are closed as soon as they are made.
    pub refuse: bool,
    /// Every request is answered by these bytes.
    pub garbage: Option<Vec<u8>>,
    pub log: Vec<Seen>,
    pub ended: Vec<u64>,
    pub alive: Vec<u64>,
    connections: Vec<UnixStream>,
    dirty: Vec<(usize, usize, usize)>,
    count: usize,
}

impl Script {
    fn execute(&mut self, seen: &Seen) {
        let start = usize::try_from(seen.offset).unwrap();
        let length = seen.length as usize;
        match seen.command {
            cmd::WRITE => self.disk[start..start + length].copy_from_slice(&seen.data),
            cmd::WRITE_ZEROES | cmd::TRIM => self.disk[start..start + length].fill(0),
            cmd::FLUSH => {
                let (dirty, connection, all) =
                    (std::mem::take(&mut self.dirty), seen.connection, self.multi_conn);
                let (now, later) = dirty.into_iter().partition(|(by, ..)| all || *by == connection);
                self.dirty = later;
                let now: Vec<_> = now;
                for (_, start, end) in now {
                    self.durable[start..end].copy_from_slice(&self.disk[start..end]);
                }
                return;
            }
            _ => return,
        }
        self.dirty.push((seen.connection, start, start + length));
    }
}

/// The server.
#[derive(Debug)]
pub struct Fake {
    pub script: Arc<Mutex<Script>>,
    pub socket: PathBuf,
}

impl Fake {
    pub fn start(dir: &Path) -> Self {
        let socket = dir.join("fake");
        let listener = UnixListener::bind(&socket).unwrap();
        let script = Arc::new(Mutex::new(Script {
            size: SIZE as u64,
            disk: vec![0; SIZE],
            durable: vec![0; SIZE],
            boot: None,
            multi_conn: true,
            drained: wire::drained::INSTANCE,
            swallow: None,
            swallowed: Vec::new(),
            refuse: false,
            garbage: None,
            log: Vec::new(),
            ended: Vec::new(),
            alive: Vec::new(),
            connections: Vec::new(),
            dirty: Vec::new(),
            count: 0,
        }));
        let shared = Arc::clone(&script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let number = {
                    let mut script = shared.lock();
                    if script.refuse {
                        continue;
                    }
                    script.connections.push(stream.try_clone().unwrap());
                    script.count += 1;
                    script.count
                };
                let script = Arc::clone(&shared);
                std::thread::spawn(move || {
                    // Ends with the connection.
                    let _ = serve(stream, number, &script);
                });
            }
        });
        Self { script, socket }
    }

    pub fn uri(&self) -> String {
        super::unix(&self.socket, "vms")
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        let connections = std::mem::take(&mut self.script.lock().connections);
        for connection in connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Loses what was not flushed, and is another process from now on.
    pub fn restart(&self) {
        {
            let mut script = self.script.lock();
            script.refuse = true;
            script.swallow = None;
        }
        self.cut();
        let mut script = self.script.lock();
        script.disk = script.durable.clone();
        script.dirty.clear();
        script.boot = script.boot.map(|mut boot| {
            boot[0] += 1;
            boot
        });
        script.refuse = false;
    }

    /// Executes what was swallowed: late delivery.
    pub fn land(&self) {
        let mut script = self.script.lock();
        for seen in std::mem::take(&mut script.swallowed) {
            script.execute(&seen);
        }
    }

    pub fn swallowed(&self) -> usize {
        self.script.lock().swallowed.len()
    }
}

fn reply(stream: &mut UnixStream, option: u32, kind: u32, payload: &[u8]) -> Result<()> {
    let length = u32::try_from(payload.len()).unwrap();
    let header = wire::OptionReplyHeader {
        magic: wire::OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        kind: kind.into(),
        length: length.into(),
    };
    stream.write_all(&[header.as_bytes(), payload].concat())
}

fn serve(mut stream: UnixStream, number: usize, script: &Mutex<Script>) -> Result<()> {
    let greeting = wire::Greeting {
        init_magic: wire::INIT_MAGIC.into(),
        option_magic: wire::OPTION_MAGIC.into(),
        flags: 3.into(),
    };
    stream.write_all(greeting.as_bytes())?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let header = wire::OptionHeader::read_from_bytes(&header).unwrap();
        let mut payload = vec![0; header.length.get() as usize];
        stream.read_exact(&mut payload)?;
        let option = header.option.get();
        let (boot, size, multi_conn, drained) = {
            let script = script.lock();
            (script.boot, script.size, script.multi_conn, script.drained)
        };
        match (option, boot) {
            (opt::HELLO, Some(boot_id)) => {
                let hello =
                    wire::HelloReply { version: 1.into(), reserved: 0.into(), flags: 0.into(), boot_id };
                reply(&mut stream, option, option, hello.as_bytes())?;
            }
            (opt::DRAIN, Some(boot_id)) => {
                if drained != wire::drained::NO {
                    // What was accepted is executed before the answer.
                    let mut script = script.lock();
                    for seen in std::mem::take(&mut script.swallowed) {
                        script.execute(&seen);
                    }
                }
                let drain = wire::DrainReply { boot_id, drained, padding: [0; 7] };
                reply(&mut stream, option, option, drain.as_bytes())?;
            }
            (opt::END, Some(boot_id)) => {
                let client = wire::End::read_from_bytes(&payload).unwrap().client.get();
                let mut script = script.lock();
                let alive = script.alive.contains(&client);
                if !alive {
                    script.ended.push(client);
                }
                let end = wire::EndReply { state: u8::from(alive), padding: [0; 7], boot_id };
                reply(&mut stream, option, option, &[end.as_bytes(), b"node n2"].concat())?;
            }
            (opt::GO, _) => {
                let mut flags = export_flag::HAS_FLAGS
                    | export_flag::SEND_FLUSH
                    | export_flag::SEND_FUA
                    | export_flag::SEND_TRIM
                    | export_flag::SEND_WRITE_ZEROES;
                if multi_conn {
                    flags |= export_flag::CAN_MULTI_CONN;
                }
                let export =
                    wire::InfoExport { info: info::EXPORT.into(), size: size.into(), flags: flags.into() };
                reply(&mut stream, option, rep::INFO, export.as_bytes())?;
                reply(&mut stream, option, rep::ACK, &[])?;
                return transmit(stream, number, script);
            }
            _ => {
                reply(&mut stream, option, rep::ERR_UNSUP, &[])?;
                continue;
            }
        }
        reply(&mut stream, option, rep::ACK, &[])?;
    }
}

fn transmit(mut stream: UnixStream, connection: usize, script: &Mutex<Script>) -> Result<()> {
    loop {
        let mut header = [0; 28];
        stream.read_exact(&mut header)?;
        let header = wire::RequestHeader::read_from_bytes(&header).unwrap();
        assert_eq!(header.magic.get(), wire::REQUEST_MAGIC);
        let (command, offset, length) = (header.command.get(), header.offset.get(), header.length.get());
        let mut data = vec![0; if command == cmd::WRITE { length as usize } else { 0 }];
        stream.read_exact(&mut data)?;
        let fua = header.flags.get() & wire::cmd_flag::FUA != 0;
        let seen = Seen { connection, command, offset, length, fua, data };
        let mut answer = wire::SimpleReply {
            magic: wire::SIMPLE_REPLY_MAGIC.into(),
            error: 0.into(),
            cookie: header.cookie,
        }
        .as_bytes()
        .to_vec();
        {
            let mut script = script.lock();
            script.log.push(seen.clone());
            if command == cmd::DISC {
                return Ok(());
            }
            if script.swallow == Some(command) {
                script.swallowed.push(seen);
                continue;
            }
            script.execute(&seen);
            if command == cmd::READ {
                let start = usize::try_from(offset).unwrap();
                answer.extend(&script.disk[start..start + length as usize]);
            }
            if let Some(garbage) = &script.garbage {
                answer.clone_from(garbage);
            }
        }
        stream.write_all(&answer)?;
    }
}
