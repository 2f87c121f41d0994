//! `task integrate --pr`: the pushed branch as a pull request, asked for by the forge's REST API in GitHub's shape
//! (<https://docs.github.com/en/rest/pulls/pulls#create-a-pull-request>), which Gitea and Forgejo have below `/api/v1`.
//!
//! Must hold: the token goes to the host that was approved and nowhere else: no redirect is followed, and plain HTTP is for this machine
//! alone. Must never: take the token from the command line, show it, or ask twice: two pull requests could come of it.

use abi::control::IntegrationStep;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};
use serde_json::{Value, json};
use std::time::Duration;
use url::Url;

use super::integrate::{Made, check_branch, plain, shown};
use crate::cli::Arguments;
use crate::context::Context;
use crate::failure::{Failure, status};
use crate::git::TOKEN;
use crate::print::{facts, visible};
use crate::run::is_loopback;
use crate::words;

const GITHUB: &str = "https://api.github.com";
/// How long the forge may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer that are read; of GitHub's some 30 KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Characters of what a forge says, as shown.
const SAID_CHARS_MAX: usize = 300;
/// Characters of a title; GitHub takes 256.
const TITLE_CHARS_MAX: usize = 256;

pub fn integrate(context: &Context, given: &Arguments, base: &str) -> Result<u8, Failure> {
    let (made, forge) = Made::approved(context, given, |repository, remote, branch| {
        let remote = remote.ok_or_else(|| {
            Failure::usage("--pr without --push", "write --push REMOTE: a forge takes a branch that it has")
        })?;
        check_branch(repository, base, "--pr main")?;
        if base == branch {
            return Err(Failure::usage(
                format!("a pull request from {0} into {0}", visible(branch)),
                "commit to a branch of its own: --commit fix-parser",
            ));
        }
        let forge = Forge::find(remote, given.value("forge"))?;
        let step = IntegrationStep::PullRequest {
            remote: shown(remote),
            branch: branch.to_owned(),
            base: base.to_owned(),
            forge: forge.host(),
        };
        Ok((step, forge))
    })?;
    let by_hand = forge.by_hand(&made.branch, base);
    made.push().map_err(|failure| adding(failure, &format!("then open the pull request: {by_hand}")))?;
    let title: String =
        plain(given.value("title").unwrap_or(&made.subject)).chars().take(TITLE_CHARS_MAX).collect();
    let asked = json!({ "title": title, "head": made.branch, "base": base, "body": body(&made) });
    let url = forge.open(&asked).map_err(|no| {
        Failure::local(
            no.exit,
            format!("{}; {}: {}", made.words(), no.outcome, no.why),
            no.rule,
            format!("{}; by hand: {by_hand}", no.remedy),
        )
    })?;
    let mut json = made.json();
    json["pull_request"] = json!(url);
    super::told(context, &json, &format!("{}\n{}\n", made.words(), visible(&url)))
}

fn adding(mut failure: Failure, remedy: &str) -> Failure {
    if let Some(more) = failure.error.as_mut().and_then(|error| error.data.as_mut()) {
        more.remedy = format!("{}; {remedy}", more.remedy);
    }
    failure
}

/// What those who review it are told. An indented block: nothing in it is read as Markdown.
fn body(made: &Made) -> String {
    let (task, summary) = (&made.task, &made.summary);
    let rows = facts(&[
        ("task", format!("{} of agent {}", task.id, task.agent)),
        ("command", words::shown(&task.verify)),
        ("patch", summary.digest.to_string()),
        ("base", task.base.to_string()),
        ("result", summary.result.to_string()),
        ("attestation", format!("event {} of the node's ledger", summary.receipt)),
        ("approval", format!("{}, event {}", made.integrated.approval, made.integrated.receipt)),
    ]);
    let block: String = rows.lines().map(|row| format!("    {row}\n")).collect();
    format!(
        "A fresh microVM, which ran nothing of the agent, put this patch on the base and ran the command there: it ended with status 0.\n\n\
         {block}\nThe digests are of trees as NullBox counts them (docs/tasks.md). The signed attestation is had from the node by `nullctl task attest {0} --out {0}.attestation`, \
         and checked anywhere by `nullctl task verify-attestation`.\n",
        task.id
    )
}

/// A repository on a forge, and what lets somebody in there.
struct Forge {
    api: Url,
    owner: String,
    repository: String,
    token: String,
}

/// Why there is no pull request, as far as one knows.
struct No {
    exit: u8,
    outcome: &'static str,
    why: String,
    rule: &'static str,
    remedy: String,
}

const NOT_OPEN: &str = "the pull request is not open";

impl Forge {
    /// The forge of a remote. Nothing is asked of it yet.
    fn find(remote: &str, given: Option<&str>) -> Result<Forge, Failure> {
        let (host, owner, repository) = place(remote).ok_or_else(|| {
            Failure::usage(
                format!("{} is no repository of a forge", visible(&shown(remote))),
                "its address must end in OWNER/REPOSITORY",
            )
        })?;
        let api = match given {
            Some(given) => api(given)?,
            None if host == "github.com" => api(GITHUB)?,
            None => {
                return Err(Failure::usage(
                    format!("the API of {} is not known", visible(&shown(remote))),
                    "name its base: --forge https://HOST/api/v1 (Gitea, Forgejo) or https://HOST/api/v3 (GitHub Enterprise)",
                ));
            }
        };
        let token = std::env::var(TOKEN).unwrap_or_default().trim().to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::usage(
                format!("{TOKEN} holds no token"),
                "put a token that may write pull requests of the repository into that variable; it is never an argument",
            ));
        }
        Ok(Forge { api, owner, repository, token })
    }

    /// Host and port, as the question names them.
    fn host(&self) -> String {
        let port = self.api.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}{port}", self.api.host_str().unwrap_or_default())
    }

    fn by_hand(&self, head: &str, base: &str) -> String {
        let Forge { owner, repository, .. } = self;
        let is_github = self.api.as_str().trim_end_matches('/') == GITHUB;
        if let Some(mut page) = Url::parse("https://github.com").ok().filter(|_| is_github) {
            if let Ok(mut path) = page.path_segments_mut() {
                path.extend([owner, repository, "compare", &format!("{base}...{head}")]);
            }
            return page.into();
        }
        format!("at {}, a new pull request of {owner}/{repository} from {head} into {base}", self.host())
    }

    /// Asks for a pull request, once; its address.
    fn open(&self, asked: &Value) -> Result<String, No> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let answer = match runtime {
            Ok(runtime) => runtime.block_on(self.post(asked)),
            Err(error) => return Err(No::before(error.to_string())),
        };
        let (code, location, bytes) = answer.map_err(|error| self.not_answered(error))?;
        let said = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if code != 201 {
            return Err(self.refused(code, &location, &said));
        }
        let url = said.get("html_url").and_then(Value::as_str).map(|url| self.told(url)).unwrap_or_default();
        match url.starts_with("https://") || url.starts_with("http://") {
            true => Ok(url),
            false => Err(No {
                outcome: "the pull request is open",
                remedy: format!("look at {}", self.host()),
                ..No::before("the forge did not say where")
            }),
        }
    }

    /// Status, place of a redirect, and body.
    async fn post(&self, asked: &Value) -> reqwest::Result<(u16, String, Vec<u8>)> {
        // A second one would be the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = reqwest::Client::builder()
            .user_agent(concat!("nullctl/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .timeout(PATIENCE);
        if self.api.scheme() == "http" {
            client = client.no_proxy(); // a proxy would read the token
        }
        let mut url = self.api.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["repos", &self.owner, &self.repository, "pulls"]);
        }
        let mut token = HeaderValue::from_str(&format!("Bearer {}", self.token))
            .unwrap_or(HeaderValue::from_static("Bearer")); // `find` has looked at each byte
        token.set_sensitive(true);
        let request = client.build()?.post(url).header(AUTHORIZATION, token);
        let request = request.header(ACCEPT, "application/json").header(CONTENT_TYPE, "application/json");
        let mut answer = request.body(asked.to_string()).send().await?;
        let location =
            answer.headers().get(LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
        let mut bytes = Vec::new();
        // One that is cut still has its status.
        while let Ok(Some(chunk)) = answer.chunk().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > ANSWER_BYTES_MAX {
                break;
            }
        }
        Ok((answer.status().as_u16(), location.unwrap_or_default(), bytes))
    }

    /// What the forge says, as it may be shown: on one line, bounded, without the token.
    fn told(&self, text: &str) -> String {
        let text = text.replace(&self.token, "[token]");
        visible(&text.chars().take(SAID_CHARS_MAX).collect::<String>())
    }

    fn not_answered(&self, error: reqwest::Error) -> No {
        let (is_connect, is_timeout) = (error.is_connect() || error.is_builder(), error.is_timeout());
        let error = error.without_url();
        let mut why = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(one) = cause {
            why.push_str(&format!(": {one}"));
            cause = one.source();
        }
        let why = format!("{}: {}", self.host(), self.told(&why));
        let exit = if is_timeout { status::TIMEOUT } else { status::UNREACHABLE };
        match is_connect {
            true => No { exit, remedy: "check the network and --forge".into(), ..No::before(why) },
            false => No {
                exit,
                outcome: "it is not known whether the pull request is open",
                remedy: format!("look at {} first", self.host()),
                ..No::before(why)
            },
        }
    }

    fn refused(&self, code: u16, location: &str, said: &Value) -> No {
        let repository = format!("{}/{}", self.owner, self.repository);
        let errors = said.get("errors").and_then(Value::as_array).into_iter().flatten().take(5);
        let errors = errors.filter_map(|error| match error.get("message").and_then(Value::as_str) {
            Some(message) => Some(message.to_owned()),
            None => error.as_str().map(str::to_owned).or_else(|| {
                Some(format!("{} is {}", error.get("field")?.as_str()?, error.get("code")?.as_str()?))
            }),
        });
        let message = said.get("message").and_then(Value::as_str).map(str::to_owned);
        let said: Vec<String> = message.into_iter().chain(errors).collect();
        let why = format!("{} answers {code} {}", self.host(), self.told(&said.join(": ")));
        let no = No::before(why.trim_end());
        match code {
            300..=399 => No {
                why: format!("{} sends to {}", no.why, self.told(location)),
                rule: "the token goes to the host that was approved: no redirect is followed",
                remedy: "if the repository or the forge has moved, correct the remote and --forge".into(),
                ..no
            },
            401 | 403 => No {
                exit: status::DENIED,
                rule: "the forge decides what a token may do",
                remedy: format!("put a token that may write pull requests of {repository} into {TOKEN}"),
                ..no
            },
            404 => No {
                exit: status::NOT_FOUND,
                rule: "a forge says 404 also of what a token may not see",
                remedy: format!("check that the API knows {repository}, and that the token may see it"),
                ..no
            },
            409 | 422 => No {
                rule: "the forge decides which pull requests there may be",
                remedy: "put right what it says".into(),
                ..no
            },
            _ => No { remedy: format!("look at {}", self.host()), ..no },
        }
    }
}

impl No {
    /// Nothing was opened.
    fn before(why: impl Into<String>) -> No {
        No { exit: status::FAILED, outcome: NOT_OPEN, why: why.into(), rule: "", remedy: "try again".into() }
    }
}

/// The base of an API, from the operator.
fn api(text: &str) -> Result<Url, Failure> {
    let wrong = |why: &str| Failure::usage(format!("--forge: {why}"), "write https://HOST/api/v1");
    // What is wrong with it may hold a password, so it is not told.
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    match url.scheme() {
        _ if !url.username().is_empty() || url.password().is_some() => {
            Err(wrong(&format!("it has a user or a password; the token comes from {TOKEN}")))
        }
        _ if url.host().is_none() || url.query().is_some() || url.fragment().is_some() => {
            Err(wrong("it is no plain address"))
        }
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err(wrong("http would show the token to the network")),
        _ => Err(wrong("neither https nor http")),
    }
}

/// Host (in lower case, without a port; of a path none), owner and repository of a remote's address. Pure.
fn place(remote: &str) -> Option<(String, String, String)> {
    let (authority, path) = match remote.split_once("://") {
        Some((_, rest)) => rest.split_once('/')?,
        None if remote.starts_with('/') => ("", remote),
        None => remote.split_once(':')?,
    };
    let host = authority.rsplit('@').next()?.split(':').next()?.to_ascii_lowercase();
    let path = path.trim_matches('/');
    let mut parts = path.strip_suffix(".git").unwrap_or(path).rsplit('/');
    let (repository, owner) = (parts.next()?, parts.next()?);
    let is_plain = |name: &str| {
        !name.is_empty()
            && name != "."
            && name != ".."
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    (is_plain(owner) && is_plain(repository)).then(|| (host, owner.to_owned(), repository.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remotes_address_names_its_repository() {
        for (remote, host, owner, repository) in [
            ("https://github.com/a/b.git", "github.com", "a", "b"),
            ("https://user:secret@GitHub.com:443/a/b/", "github.com", "a", "b"),
            ("git@github.com:a/b.c.git", "github.com", "a", "b.c"),
            ("ssh://git@github.com:22/a/b", "github.com", "a", "b"),
            ("https://example.org/git/a/b", "example.org", "a", "b"),
            ("https://github.com@evil.test/a/b", "evil.test", "a", "b"),
            ("https://github.com.evil.test/a/b", "github.com.evil.test", "a", "b"),
            ("/srv/a/b.git", "", "a", "b"),
        ] {
            assert_eq!(place(remote), Some((host.into(), owner.into(), repository.into())), "{remote}");
        }
        for none in [
            "https://github.com",
            "https://github.com/a",
            "https://github.com/../b",
            "https://x/a/b?c",
            "git@x:b",
        ] {
            assert_eq!(place(none), None, "{none}");
        }
    }

    #[test]
    fn a_token_goes_over_http_to_this_machine_alone() {
        for good in [
            "https://x.test/api/v1",
            "https://x.test:8443",
            "http://127.0.0.1:3000/api/v1/",
            "http://[::1]:1",
        ] {
            assert!(api(good).is_ok(), "{good}");
        }
        for bad in [
            "http://x.test",
            "http://127.0.0.1.x.test",
            "ftp://x.test",
            "x.test",
            "https://a:secret@x.test",
            "https://x.test/?a",
        ] {
            let error = api(bad)
                .map_err(|failure| failure.error.map(|error| error.message))
                .unwrap_err()
                .unwrap_or_default();
            assert!(error.starts_with("--forge: ") && !error.contains("secret"), "{bad}: {error}");
        }
    }

    #[test]
    fn by_hand_is_a_page_on_github_and_words_elsewhere() {
        let forge = |text: &str| Forge {
            api: api(text).unwrap_or_else(|_| panic!("{text}")),
            owner: "a".into(),
            repository: "b".into(),
            token: "t".into(),
        };
        assert_eq!(
            forge(GITHUB).by_hand("fix/#1", "main"),
            "https://github.com/a/b/compare/main...fix%2F%231"
        );
        assert_eq!(
            forge("https://x.test:81/api/v1").by_hand("fix", "main"),
            "at x.test:81, a new pull request of a/b from fix into main"
        );
    }
}
