//! A test internet for a node: a network namespace with servers on whatever addresses a test needs, at the other end of the node's
//! cable (internet/internet.py). QEMU's frames come over Unix sockets, so nothing can leave this machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The hosts that have a certificate of the test authority.
const HOSTS: [&str; 6] = ["web", "other", "api", "evil", "model", "claude"];

/// A running test internet. Dropping it ends it.
#[derive(Debug)]
pub struct Internet {
    dir: PathBuf,
    helper: Child,
    /// Port of this machine's loopback that leads to the node's gate.
    pub gate_port: u16,
}

impl Internet {
    /// Starts one in `dir`, which must be new. `dns`: what names stand for at first.
    pub fn start(dir: PathBuf, dns: &Value) -> Result<Internet> {
        fs::create_dir_all(&dir)?;
        certificates(&dir)?;
        fs::write(dir.join("dns.json"), dns.to_string())?;
        fs::write(dir.join("seen.log"), "")?;
        let script = crate::tree().join("tests/internet/internet.py");
        let mut helper = Command::new("python3")
            .arg(script)
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(helper.stdout.take().context("no output")?).lines();
        let mut line =
            || lines.next().context("the test internet did not start")?.map_err(anyhow::Error::from);
        let gate_port = line()?.parse()?;
        ensure!(line()? == "ready", "the test internet did not start");
        Ok(Internet { dir, helper, gate_port })
    }

    /// What QEMU's `-netdev` gets.
    pub fn netdev(&self) -> String {
        let path = |name: &str| self.dir.join(name).display().to_string();
        format!(
            "dgram,id=uplink,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            path("node.sock"),
            path("internet.sock")
        )
    }

    /// The certificate (PEM) of the authority that signed its hosts' certificates.
    pub fn authority(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("ca.pem"))?)
    }

    /// Says what names stand for, from the next question on.
    pub fn set_dns(&self, dns: &Value) -> Result<()> {
        fs::write(self.dir.join("dns.new"), dns.to_string())?;
        Ok(fs::rename(self.dir.join("dns.new"), self.dir.join("dns.json"))?)
    }

    /// What it has seen so far, a line each: `dns NAME`, `connect ADDRESS:PORT`, `udp ADDRESS:PORT`, requests.
    pub fn seen(&self) -> Result<Vec<String>> {
        Ok(fs::read_to_string(self.dir.join("seen.log"))?.lines().map(str::to_owned).collect())
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let _ = self.helper.kill(); // it may have ended
        let _ = self.helper.wait();
    }
}

/// An authority and a certificate of each host, `HOST.test`.
fn certificates(dir: &Path) -> Result<()> {
    let mut script = String::from(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-authority \
         -keyout ca.key -out ca.pem\n",
    );
    for host in HOSTS {
        script.push_str(&format!(
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={host}.test -keyout {host}.key -out {host}.csr\n\
             printf 'subjectAltName=DNS:{host}.test\\n' > {host}.ext\n\
             openssl x509 -req -in {host}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {host}.ext -out {host}.crt\n\
             cat {host}.crt {host}.key > {host}.pem\n"
        ));
    }
    let output = Command::new("bash").args(["-euc", &script]).current_dir(dir).output()?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
