//! Joins standard input and output with a TCP connection: what QEMU's `guestfwd` starts for each connection to an address
//! of the test internet.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("usage: pipe HOST:PORT"))?;
    let upstream = TcpStream::connect(&address)?;
    let mut sending = upstream.try_clone()?;
    std::thread::spawn(move || {
        let _ = copy(&mut io::stdin().lock(), &mut sending); // the other side has gone: so do we
        let _ = sending.shutdown(Shutdown::Write);
    });
    copy(&mut &upstream, &mut io::stdout().lock())?;
    Ok(())
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = [0u8; 16 * 1024];
    loop {
        let count = from.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&chunk[..count])?;
        to.flush()?;
    }
}
