//! Clients and the server: bytes one way, round trips, connections that are held. Plain blocking sockets.
//!
//! A connection begins with a byte that is neither TLS nor HTTP, so that the proxy needs to look no further, and an order.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const DOWN: u8 = 1;
const UP: u8 = 2;
const ECHO: u8 = 3;
const HOLD: u8 = 4;
/// Bytes of a small request, and of its answer.
const SMALL: usize = 64;
const BUFFER: usize = 256 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves for ever, in the caller's namespace.
pub fn serve(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the server's port");
    let held = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..4 {
        let (listener, held) = (listener.try_clone().expect("a listener"), held.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                accept(stream, &held);
            }
        });
    }
}

/// One that goes away early ends only itself.
fn accept(mut stream: TcpStream, held: &Mutex<Vec<TcpStream>>) {
    let mut order = [0; 10];
    let _ = (stream.set_nodelay(true), stream.set_read_timeout(Some(PATIENCE)));
    if stream.read_exact(&mut order).is_err() {
        return;
    }
    let count = u64::from_le_bytes(order[2..].try_into().expect("eight bytes"));
    if order[1] == HOLD {
        let _ = stream.write_all(&[1]);
        return held.lock().expect("held").push(stream);
    }
    std::thread::spawn(move || {
        let _ = match order[1] {
            DOWN => write(&mut stream, count),
            UP => read(&mut stream, count).and_then(|()| stream.write_all(&[1])),
            _ => echo(&mut stream),
        };
    });
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut small = [0; SMALL];
    loop {
        stream.read_exact(&mut small)?;
        stream.write_all(&small)?;
    }
}

fn write(stream: &mut TcpStream, mut count: u64) -> std::io::Result<()> {
    let buffer = vec![7; BUFFER];
    while count > 0 {
        let now = count.min(BUFFER as u64) as usize;
        stream.write_all(&buffer[..now])?;
        count -= now as u64;
    }
    Ok(())
}

fn read(stream: &mut TcpStream, mut count: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while count > 0 {
        let now = stream.read(&mut buffer)?;
        if now == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        count -= now as u64;
    }
    Ok(())
}

fn begin(to: SocketAddr, order: u8, count: u64) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connect");
    stream.set_nodelay(true).expect("no delay");
    stream.set_read_timeout(Some(PATIENCE)).expect("patience");
    stream.write_all(&[&[0, order][..], &count.to_le_bytes()].concat()).expect("an order");
    stream
}

fn mb_s(bytes: u64, begun: Instant) -> f64 {
    bytes as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

/// MB (1,000,000 bytes) a second from the server, connection included.
pub fn download(to: SocketAddr, bytes: u64) -> f64 {
    let begun = Instant::now();
    read(&mut begin(to, DOWN, bytes), bytes).expect("all bytes");
    mb_s(bytes, begun)
}

/// MB a second to the server, until it says that it has them.
pub fn upload(to: SocketAddr, bytes: u64) -> f64 {
    let begun = Instant::now();
    let mut stream = begin(to, UP, bytes);
    write(&mut stream, bytes).expect("all bytes");
    stream.read_exact(&mut [0]).expect("the server's word");
    mb_s(bytes, begun)
}

/// Microseconds of each of so many small requests over one connection, one after the other.
pub fn round_trips(to: SocketAddr, count: usize) -> Vec<f64> {
    let mut stream = begin(to, ECHO, 0);
    let mut small = [0; SMALL];
    (0..count)
        .map(|_| {
            let begun = Instant::now();
            stream.write_all(&small).expect("a request");
            stream.read_exact(&mut small).expect("an answer");
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect()
}

/// A connection that is open on the server too.
pub struct Held(TcpStream);

/// Opens one and leaves it alone.
pub fn hold(to: SocketAddr) -> Held {
    let mut stream = begin(to, HOLD, 0);
    stream.read_exact(&mut [0]).expect("the server's word");
    stream.set_nonblocking(true).expect("non-blocking");
    Held(stream)
}

impl Held {
    /// Whether it still is.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}
