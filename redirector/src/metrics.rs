//! Figures for Prometheus: its text format, and a responder of a few lines that serves nothing else.
//!
//! One connection at a time, with short time-outs and short requests: whoever asks slowly is cut off, and nobody can make
//! it hold anything.

use std::fmt::{Display, Write as _};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest request in bytes.
const REQUEST_MAX: usize = 8 << 10;
/// How long a client may take for its request, and for its answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why figures are not served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {source}; give HOST:PORT of this machine that nobody else uses")]
pub struct MetricsError {
    address: String,
    #[source]
    source: io::Error,
}

/// A text of figures in the making.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    text: String,
}

fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Exposition {
    /// Begins a figure: `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A value of the figure that was begun last, with labels.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"{}\"", if i == 0 { '{' } else { ',' }, quoted(text));
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A figure with one value.
    pub fn single(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        labels: &[(&str, &str)],
        value: impl Display,
    ) {
        self.family(name, kind, help);
        self.sample(name, labels, value);
    }

    /// A histogram of latencies: how many took less than each bound, in increasing order, and no longer than the bound
    /// before it. The sum is that of the bounds: no more is known.
    pub fn latencies(
        &mut self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        classes: &[(Duration, u64)],
    ) {
        self.family(name, "histogram", help);
        let (mut count, mut sum) = (0_u64, 0.0);
        for (bound, found) in classes {
            count += found;
            #[expect(clippy::cast_precision_loss, reason = "a sum of bounds is not exact anyway")]
            let found = *found as f64;
            sum += bound.as_secs_f64() * found;
            let le = bound.as_secs_f64().to_string();
            let labels: Vec<_> = labels.iter().copied().chain([("le", le.as_str())]).collect();
            self.sample(&format!("{name}_bucket"), &labels, count);
        }
        let all: Vec<_> = labels.iter().copied().chain([("le", "+Inf")]).collect();
        self.sample(&format!("{name}_bucket"), &all, count);
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, count);
    }

    /// The text.
    #[must_use]
    pub fn text(self) -> String {
        self.text
    }
}

/// Serves figures until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Serves on `address` (HOST:PORT) what `render` makes at each request.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub fn serve(
        address: &str,
        render: impl Fn() -> Exposition + Send + 'static,
    ) -> Result<Self, MetricsError> {
        let failed = |source| MetricsError { address: address.to_owned(), source };
        let resolved = address.to_socket_addrs().map_err(failed)?.next();
        let resolved = resolved.ok_or_else(|| failed(io::ErrorKind::AddrNotAvailable.into()))?;
        let listener = TcpListener::bind(resolved).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                if let Err(error) = stream.and_then(|stream| answer(stream, &render)) {
                    tracing::debug!(%error, "a question for metrics was not answered");
                }
            }
        };
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread, which looks before it answers.
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let woken = TcpStream::connect_timeout(&address, PATIENCE).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

/// Reads the head of a request, at most [`REQUEST_MAX`] bytes and for at most [`PATIENCE`].
fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > REQUEST_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            read => head.extend_from_slice(&part[..read]),
        }
    }
    Ok(head)
}

fn answer(mut stream: TcpStream, render: &impl Fn() -> Exposition) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(&mut stream)?;
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match (method, path.split(|byte| *byte == b'?').next().unwrap_or_default()) {
        (b"GET" | b"HEAD", b"/metrics" | b"/") => ("200 OK", render().text()),
        (b"GET" | b"HEAD", _) => ("404 Not Found", "only /metrics is here\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET is answered\n".to_owned()),
    };
    let length = body.len();
    let mut reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    if method != b"HEAD" {
        reply.push_str(&body);
    }
    stream.write_all(reply.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(server: &MetricsServer, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(request).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        String::from_utf8_lossy(&reply).into_owned()
    }

    #[test]
    fn figures_are_served_and_nothing_else() {
        let server = MetricsServer::serve("127.0.0.1:0", || {
            let mut figures = Exposition::default();
            figures.single("x_total", "counter", "Xs.", &[("name", "a\"b\\c\nd")], 7);
            let classes = [(Duration::from_millis(1), 3), (Duration::from_millis(2), 2)];
            figures.latencies("x_seconds", "How long.", &[("way", "w")], &classes);
            figures
        })
        .unwrap();
        let reply = ask(&server, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("version=0.0.4"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        let expected = "# HELP x_total Xs.\n# TYPE x_total counter\nx_total{name=\"a\\\"b\\\\c\\nd\"} 7\n\
                        # HELP x_seconds How long.\n# TYPE x_seconds histogram\n\
                        x_seconds_bucket{way=\"w\",le=\"0.001\"} 3\nx_seconds_bucket{way=\"w\",le=\"0.002\"} 5\n\
                        x_seconds_bucket{way=\"w\",le=\"+Inf\"} 5\nx_seconds_sum{way=\"w\"} 0.007\n\
                        x_seconds_count{way=\"w\"} 5\n";
        assert_eq!(body, expected);
        assert!(ask(&server, b"GET /other HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask(&server, b"POST /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 405"));
        assert!(ask(&server, b"\xff\x00\r\n\r\n").starts_with("HTTP/1.1 405"));
        // Too long, and not ended: no answer, and the next one is served.
        assert_eq!(ask(&server, &[b'x'; 64 << 10]), "");
        assert!(ask(&server, b"GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200"));
        let address = server.address();
        drop(server);
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn an_address_that_is_taken_is_told() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = MetricsServer::serve(&address, Exposition::default).unwrap_err().to_string();
        assert!(error.contains(&address), "{error}");
        assert!(MetricsServer::serve("nowhere", Exposition::default).is_err());
    }
}
