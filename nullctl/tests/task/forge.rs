//! `task integrate --pr` against a forge of the test's own on this machine, with a bare repository behind it.

use super::*;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};

const TOKEN: &str = "f0rge-t0ken";

/// A request as it came.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

/// Answers each request with what it was given last; an empty answer ends the connection.
#[derive(Clone)]
struct Forge {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    answer: Arc<Mutex<String>>,
}

impl Forge {
    fn start() -> Forge {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let forge = Forge { port, asked: Arc::default(), answer: Arc::default() };
        let serving = forge.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serving.serve(stream.unwrap());
            }
        });
        forge
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap() == 0 {
                return;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let headers: BTreeMap<String, String> = lines[1..]
            .iter()
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let asked = Asked { line: lines.remove(0), headers, body: serde_json::from_slice(&body).unwrap() };
        self.asked.lock().unwrap().push(asked);
        reader.get_mut().write_all(self.answer.lock().unwrap().as_bytes()).unwrap();
    }

    /// What it answers from now on.
    fn answers(&self, status: &str, header: &str, body: &Value) {
        let body = body.to_string();
        *self.answer.lock().unwrap() = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{header}\r\n{body}",
            body.len()
        );
    }

    fn api(&self) -> String {
        format!("http://127.0.0.1:{}/api/v1", self.port)
    }
}

/// A task with a verified patch, a repository for it, and a bare one that a forge has.
struct Place {
    world: World,
    dir: String,
    remote: String,
}

impl Place {
    fn new() -> Place {
        let world = World::new();
        let dir = repository(&world, "r");
        let base = world.begin(&dir);
        world.verified(&base, &[("src/lib.rs", Some("fn b() {}\n"))]);
        let remote = world.scratch.path("acme/parser.git").to_str().unwrap().to_owned();
        git(&world.scratch.0, &["init", "-q", "--bare", &remote]);
        Place { world, dir, remote }
    }

    fn integrate(&self, more: &[&str], environment: &[(&str, &str)]) -> Ran {
        let args = [&["task", "integrate", "t7", "--repo", &self.dir], more].concat();
        let ran = self.world.run_with(&args, environment);
        assert!(!format!("{}{}", ran.out, ran.err).contains(TOKEN), "{}{}", ran.out, ran.err);
        ran
    }

    /// A pull request from a branch, with the token.
    fn pull(&self, branch: &str, forge: &str) -> Ran {
        let branch = format!("--commit={branch}");
        let args = [&branch, "--push", &self.remote, "--pr", "main", "--forge", forge];
        self.integrate(&args, &[("NULLBOX_FORGE_TOKEN", TOKEN)])
    }
}

#[test]
fn a_pushed_branch_becomes_a_pull_request() {
    let (place, forge) = (Place::new(), Forge::start());
    let (scratch, node) = (&place.world.scratch, &place.world.node);
    // A git that writes down what it was given: the token is none of its business.
    let log = scratch.path("git.log");
    let real = std::env::var("PATH").unwrap();
    write(
        &scratch.0,
        &[(
            "bin/git",
            &format!(
                "#!/bin/sh\n{{ echo \"$@\"; env; }} >> {}\nPATH={real} exec git \"$@\"\n",
                log.display()
            ),
        )],
    );
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(scratch.path("bin/git"), executable).unwrap();
    let path = format!("{}:{real}", scratch.path("bin").display());
    let environment = [("NULLBOX_FORGE_TOKEN", TOKEN), ("PATH", path.as_str())];
    forge.answers(
        "201 Created",
        "",
        &json!({"number": 7, "html_url": "https://forge.test/acme/parser/pulls/7"}),
    );
    let (pr, api) = (["--push", &place.remote, "--pr", "main", "--forge"], forge.api());
    let ran = place.integrate(&[&["--commit", "fix"], &pr[..], &[&api]].concat(), &environment);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(ran.out.ends_with("\nhttps://forge.test/acme/parser/pulls/7\n"), "{}", ran.out);
    assert!(
        std::fs::read_to_string(&log).unwrap().contains("push")
            && !std::fs::read_to_string(&log).unwrap().contains(TOKEN)
    );
    // What was approved is this one step.
    let (methods, asked) = (place.world.methods(), node.lock().unwrap().asked.last().unwrap().1.clone());
    assert_eq!(methods.iter().filter(|method| *method == "task.integrate").count(), 1);
    let host = format!("127.0.0.1:{}", forge.port);
    let step =
        json!({"pull_request": {"remote": place.remote, "branch": "fix", "base": "main", "forge": host}});
    assert_eq!(asked, json!({"id": "t7", "step": step}));
    let commit = git(Path::new(&place.remote), &["rev-parse", "fix"]);
    // What the forge was asked for.
    let request = forge.asked.lock().unwrap().remove(0);
    assert_eq!(request.line, "POST /api/v1/repos/acme/parser/pulls HTTP/1.1");
    let header = |name: &str| request.headers.get(name).map(String::as_str).unwrap_or_default();
    assert_eq!(header("authorization"), format!("Bearer {TOKEN}"));
    assert_eq!((header("content-type"), header("accept")), ("application/json", "application/json"));
    assert!(header("user-agent").starts_with("nullctl/"));
    let mut members = request.body.clone();
    let body = members["body"].take().as_str().unwrap().to_owned();
    assert_eq!(members, json!({"title": "mend it", "head": "fix", "base": "main", "body": null}));
    let status = node.lock().unwrap().status.clone();
    for told in [
        "t7 of agent coder",
        "\"make\" \"check\"",
        "status 0",
        "event 41",
        "a3, event 44",
        "nullctl task attest t7",
        status["base"].as_str().unwrap(),
        status["patch"]["digest"].as_str().unwrap(),
        status["patch"]["result"].as_str().unwrap(),
    ] {
        assert!(body.contains(told), "{told}: {body}");
    }
    // As JSON, with a title of its own.
    let ran = place.integrate(
        &[&["--json", "--commit", "more", "--title", "A\ntitle"], &pr[..], &[&api]].concat(),
        &environment,
    );
    let answer: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    assert_eq!(answer["pull_request"], "https://forge.test/acme/parser/pulls/7");
    assert_eq!((&answer["commit"], &answer["pushed"]), (&json!(commit), &json!(place.remote)));
    assert_eq!(forge.asked.lock().unwrap()[0].body["title"], "A title");
}

/// Arguments, environment, and what the message and its remedy say.
type Refused<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str, &'a str);

#[test]
fn what_cannot_become_a_pull_request_is_not_asked_for() {
    let (place, forge) = (Place::new(), Forge::start());
    let (api, remote) = (forge.api(), place.remote.as_str());
    let whole = ["--commit", "fix", "--push", remote, "--pr", "main", "--forge", &api];
    let token = [("NULLBOX_FORGE_TOKEN", TOKEN)];
    let cases: [Refused; 10] = [
        (
            &whole,
            &[("NULLBOX_FORGE_TOKEN", "")],
            "NULLBOX_FORGE_TOKEN holds no token",
            "may write pull requests",
        ),
        (&whole, &[("NULLBOX_FORGE_TOKEN", "a\nb")], "holds no token", "never an argument"),
        (&["--commit", "fix", "--pr", "main"], &token, "--pr without --push", "--push REMOTE"),
        (
            &["--commit", "fix", "--push", remote, "--pr", "main"],
            &token,
            "is not known",
            "--forge https://HOST/api/v1",
        ),
        (
            &["--commit", "fix", "--push", "https://x.test", "--pr", "main"],
            &token,
            "no repository of a forge",
            "OWNER/REPOSITORY",
        ),
        (
            &["--commit", "fix", "--push", remote, "--pr", "main", "--forge", "http://x.test"],
            &token,
            "to the network",
            "https://",
        ),
        (
            &["--commit", "fix", "--push", remote, "--pr", "fix", "--forge", &api],
            &token,
            "from fix into fix",
            "a branch of its own",
        ),
        (
            &["--commit", "fix", "--push", remote, "--pr", "a..b", "--forge", &api],
            &token,
            "cannot name a branch",
            "--pr main",
        ),
        (
            &["--commit", "fix", "--push", remote, "--forge", &api],
            &token,
            "--forge without --pr",
            "--pr BASE",
        ),
        (&["--commit", "fix", "--title", "x"], &token, "--title without --pr", "--pr BASE"),
    ];
    for (args, environment, why, remedy) in cases {
        let ran = place.integrate(args, environment);
        assert_eq!(ran.status, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(why) && ran.err.contains(remedy), "{args:?}: {}", ran.err);
    }
    assert!(!place.world.methods().contains(&"task.integrate".to_owned()), "nobody is asked");
    assert!(forge.asked.lock().unwrap().is_empty());
    assert_eq!(git(Path::new(&place.dir), &["branch", "--list", "fix"]), "");
}

#[test]
fn a_forge_that_refuses_leaves_a_pushed_branch_and_says_so() {
    let (place, forge, elsewhere) = (Place::new(), Forge::start(), Forge::start());
    let to = format!("location: http://127.0.0.1:{}/x\r\n", elsewhere.port);
    let exists = json!({"message": format!("no\u{1b}[2J {TOKEN} {}", "x".repeat(5000)), "errors": []});
    let wrong = json!({"message": "Validation Failed", "errors": [{"message": "No commits between"}, {"field": "base", "code": "invalid"}, "odd", {}]});
    let cases = [
        (
            4,
            "401 Unauthorized",
            "",
            json!({"message": "Bad credentials"}),
            "answers 401 Bad credentials",
            "into NULLBOX_FORGE_TOKEN",
        ),
        (4, "403 Forbidden", "", json!("?"), "answers 403\n", "write pull requests of acme/parser"),
        (
            5,
            "404 Not Found",
            "",
            json!({"message": "Not Found"}),
            "answers 404 Not Found",
            "knows acme/parser",
        ),
        (
            1,
            "422 Unprocessable",
            "",
            wrong,
            "422 Validation Failed: No commits between: base is invalid: odd\n",
            "put right",
        ),
        (1, "409 Conflict", "", exists, "answers 409 no\\u{1b}[2J [token] xxx", "put right"),
        (
            1,
            "307 Temporary Redirect",
            &to,
            json!({}),
            "answers 307 sends to http://127.0.0.1:",
            "correct the remote and --forge",
        ),
        (1, "500 Internal", "", json!({}), "answers 500\n", "look at 127.0.0.1:"),
    ];
    for (number, (status, line, header, body, why, remedy)) in cases.into_iter().enumerate() {
        forge.answers(line, header, &body);
        let branch = format!("fix-{number}");
        let ran = place.pull(&branch, &forge.api());
        assert_eq!(ran.status, status, "{line}: {}", ran.err);
        assert!(
            ran.err.contains(why) && ran.err.contains(remedy) && ran.err.len() < 2000,
            "{line}: {}",
            ran.err
        );
        let commit = git(Path::new(&place.remote), &["rev-parse", &branch]);
        let stands =
            format!("{branch} is {commit}, pushed to {}; the pull request is not open: ", place.remote);
        assert!(ran.err.contains(&stands), "{line}: {}", ran.err);
        assert!(
            ran.err.contains(&format!("a new pull request of acme/parser from {branch} into main")),
            "{}",
            ran.err
        );
    }
    assert!(elsewhere.asked.lock().unwrap().is_empty(), "no redirect is followed, with a token or without");
    // What may have been done is not said to be undone.
    forge.answers("201 Created", "", &json!({"html_url": "javascript:x"}));
    let ran = place.pull("nowhere", &forge.api());
    assert!(
        ran.status == 1 && ran.err.contains("the pull request is open: the forge did not say where"),
        "{}",
        ran.err
    );
    *forge.answer.lock().unwrap() = String::new();
    let ran = place.pull("silent", &forge.api());
    assert!(
        ran.status == 3 && ran.err.contains("it is not known whether the pull request is open"),
        "{}",
        ran.err
    );
    assert_eq!(forge.asked.lock().unwrap().len(), 9, "each is asked for once");
    // Nobody is there: the port is of a listener that is gone.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for scheme in ["http", "https"] {
        let ran = place.pull(scheme, &format!("{scheme}://127.0.0.1:{port}"));
        assert!(ran.status == 3 && ran.err.contains("the pull request is not open"), "{}", ran.err);
        assert!(ran.err.contains("onnection refused"), "{}", ran.err);
    }
    // Not even pushed: that is said, and what is left to do.
    std::fs::remove_dir_all(&place.remote).unwrap();
    let ran = place.pull("unpushed", &forge.api());
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(
        ran.err.contains("made, and not pushed") && ran.err.contains("then open the pull request"),
        "{}",
        ran.err
    );
}
