//! A service for nulld's tests of confinement: tries what its arguments say, `VERB=WHAT`, prints how each went, says that it is
//! ready, and waits. A verb that must end the process is the last one tried.

mod sys;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use abi::door::Inherited;
use abi::notice::Notice;

fn main() {
    let inherited = Inherited::take().unwrap();
    let mut kept = Vec::new();
    for argument in std::env::args().skip(1) {
        let (verb, what) = argument.split_once('=').unwrap();
        match attempt(verb, what, &mut kept) {
            Ok(answer) => println!("{argument} -> ok {answer}"),
            Err(error) => println!("{argument} -> {error}"),
        }
    }
    inherited.notify.send(&Notice::Ready).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// What listens stays open until the end.
type Kept = Vec<Box<dyn std::any::Any>>;

fn attempt(verb: &str, what: &str, kept: &mut Kept) -> io::Result<String> {
    match verb {
        "read" => {
            let mut text = Vec::new();
            fs::File::open(what)?.take(64 * 1024).read_to_end(&mut text)?;
            Ok(String::from_utf8_lossy(&text).replace('\n', " ").chars().take(900).collect())
        }
        "byte" => fs::File::open(what)?.read(&mut [0]).map(|count| count.to_string()),
        "write" => {
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(what)?;
            file.write_all(b"0\n").map(|()| String::new())
        }
        "list" => {
            let mut names: Vec<_> =
                fs::read_dir(what)?.flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            Ok(names.join(" "))
        }
        "pid" => fs::write(what, std::process::id().to_string()).map(|()| String::new()),
        "signal" => {
            let pid: u64 = fs::read_to_string(what)?.parse().map_err(io::Error::other)?;
            sys::call(libc::SYS_tgkill, [pid, pid, 0, 0]).map(|_| String::new())
        }
        "call" => {
            let mut numbers = what.split(':').map(|word| word.parse::<u64>().unwrap());
            let number = numbers.next().unwrap().cast_signed();
            let mut args = [0; 4];
            args.iter_mut().zip(numbers).for_each(|(arg, number)| *arg = number);
            sys::call(number, args).map(|value| value.to_string())
        }
        "connect" => TcpStream::connect(what).map(|_| String::new()),
        "listen" => keep(kept, TcpListener::bind(what)?),
        "unix" => UnixStream::connect(what).map(|_| String::new()),
        "abstract" => UnixStream::connect_addr(&SocketAddr::from_abstract_name(what)?).map(|_| String::new()),
        "abstract-listen" => keep(kept, UnixListener::bind_addr(&SocketAddr::from_abstract_name(what)?)?),
        "threads" => threads(what.parse().unwrap()),
        "copy" => fs::copy(std::env::args().next().unwrap(), what).map(|bytes| bytes.to_string()),
        "start" => start(what),
        "mount" => {
            fs::create_dir_all(what)?;
            let flags = rustix::mount::MountFlags::NOSUID;
            rustix::mount::mount("tmpfs", what, "tmpfs", flags, c"size=4k")?;
            fs::write(format!("{what}/inside"), "x").map(|()| String::new())
        }
        other => panic!("unknown verb `{other}`"),
    }
}

fn keep(kept: &mut Kept, what: impl std::any::Any) -> io::Result<String> {
    kept.push(Box::new(what));
    Ok(String::new())
}

/// How many threads there can be beside this one.
fn threads(most: usize) -> io::Result<String> {
    let wait = || std::thread::sleep(Duration::from_secs(1000));
    let made = (0..most).take_while(|_| std::thread::Builder::new().spawn(wait).is_ok()).count();
    Ok(made.to_string())
}

/// Starts a program by the one call that a service's filter lets through.
fn start(what: &str) -> io::Result<String> {
    let path = std::ffi::CString::new(what)?;
    let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
    let none: [&std::ffi::CStr; 0] = [];
    match nix::unistd::execveat(nix::fcntl::AT_FDCWD, &path, &[&path], &none, flags) {
        Ok(never) => match never {},
        Err(errno) => Err(errno.into()),
    }
}
