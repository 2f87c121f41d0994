//! `task integrate`: a verified patch as a commit on a branch, and that branch pushed.
//!
//! Must hold: the node is asked first, and gives the patch out only after somebody approved this step; what is committed is the tree that
//! was verified, by its digest (less empty directories, which git cannot keep). The work tree and its index are not touched. Must never: run a hook or anything the repository configures.

use abi::control::{Integrated, IntegrationStep, PatchSummary, Progress, TaskIntegrate, TaskRef, TaskStatus};
use abi::ids::Digest;
use abi::rpc::Request;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use verdict::tree::Entry;

use super::change::{self, Patch};
use super::export::receive;
use crate::cli::Arguments;
use crate::context::{Context, Silence};
use crate::failure::{Failure, status};
use crate::git::Repository;
use crate::link::typed;
use crate::pack::Tree;
use crate::print::{Meter, visible};
use crate::run::{id, note};

/// How a remote may be reached that is named by the repository's configuration, not by the operator.
const TRANSPORTS: &[&str] = &["https://", "ssh://", "http://", "git://"];

pub fn integrate(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    #[cfg(feature = "forge")]
    if let Some(base) = given.value("pr") {
        return super::forge::integrate(context, given, base);
    }
    if let Some(option) = ["title", "forge"].into_iter().find(|option| given.has(option)) {
        return Err(Failure::usage(
            format!("--{option} without --pr"),
            "write --pr BASE to open a pull request",
        ));
    }
    let (made, ()) = Made::approved(context, given, |_, remote, branch| {
        let branch = branch.to_owned();
        let step = match remote {
            None => IntegrationStep::Commit { branch },
            Some(url) => IntegrationStep::Push { remote: shown(url), branch },
        };
        Ok((step, ()))
    })?;
    made.push()?;
    super::told(context, &made.json(), &format!("{}\n", made.words()))
}

/// A branch whose commit holds the verified tree, and what it was made by.
#[cfg_attr(not(feature = "forge"), expect(dead_code, reason = "a pull request tells all of it"))]
pub struct Made {
    repository: Repository,
    /// Where it shall be pushed.
    url: Option<String>,
    pub branch: String,
    commit: String,
    pub subject: String,
    pub task: TaskStatus,
    pub summary: PatchSummary,
    pub integrated: Integrated,
}

impl Made {
    /// Makes it once the step is approved. `step` says, of repository, remote and branch, what is to be approved; what it refuses is not asked.
    pub fn approved<T>(
        context: &Context,
        given: &Arguments,
        step: impl FnOnce(&Repository, Option<&str>, &str) -> Result<(IntegrationStep, T), Failure>,
    ) -> Result<(Made, T), Failure> {
        let task = TaskRef { id: id(given.required(0))? };
        let branch = given.value("commit").ok_or_else(|| {
            Failure::usage(
                "task integrate: --commit is missing",
                "write --commit BRANCH, and --push REMOTE to push it",
            )
        })?;
        let (now, summary) = super::verified(context, &task)?;
        let place = Place::find(given.value("repo").unwrap_or("."), branch)?;
        let url = given.value("push").map(|remote| remote_url(&place.repository, remote)).transpose()?;
        let (step, more) = step(&place.repository, url.as_deref(), branch)?;
        let parent = place.parent.clone();
        let found = Tree::of_commit(place.repository, &parent, String::new())?;
        let base = found.digested()?;
        change::same_base(&base, &now, &format!("commit {parent}"))?;
        let (bytes, integrated) = ask(context, &TaskIntegrate { id: task.id, step })?;
        let patch = change::read(&bytes, &base, &now, &summary)?;
        let repository =
            found.into_repository().ok_or_else(|| Failure::usage("no repository", "name one with --repo"))?;
        let subject = subject(&now, given.value("message"));
        let message = format!("{subject}\n\n{}", trailers(&now, &summary, &integrated));
        let result = change::as_git_keeps_it(&base, &patch)?;
        let (repository, commit) = commit(repository, &parent, &patch, result, &message)?;
        repository.set_branch(branch, &commit, &place.head)?;
        let branch = branch.to_owned();
        Ok((Made { repository, url, branch, commit, subject, task: now, summary, integrated }, more))
    }

    /// Pushes it, if that was asked for.
    pub fn push(&self) -> Result<(), Failure> {
        self.url.as_deref().map_or(Ok(()), |url| push(&self.repository, url, &self.commit, &self.branch))
    }

    /// What stands, once it is pushed.
    pub fn words(&self) -> String {
        let pushed = self.url.as_deref().map(|url| format!(", pushed to {}", visible(&shown(url))));
        format!("{} is {}{}", visible(&self.branch), self.commit, pushed.unwrap_or_default())
    }

    pub fn json(&self) -> Value {
        let pushed = self.url.as_deref().map(shown);
        json!({ "branch": self.branch, "commit": self.commit, "pushed": pushed, "integrated": self.integrated })
    }
}

/// Where a commit shall go.
struct Place {
    repository: Repository,
    /// What the branch is now; empty: there is none.
    head: String,
    parent: String,
}

impl Place {
    fn find(path: &str, branch: &str) -> Result<Place, Failure> {
        let at = |error: &dyn std::fmt::Display| {
            Failure::usage(format!("{}: {error}", visible(path)), "name a git work tree with --repo")
        };
        let canonical = Path::new(path).canonicalize().map_err(|error| at(&error))?;
        let repository = Repository::around(&canonical)?
            .ok_or_else(|| at(&"no git work tree, or no git on this machine"))?;
        check_branch(&repository, branch, "--commit fix-parser")?;
        if repository.is_checked_out(branch)? {
            return Err(Failure::usage(
                format!(
                    "{} is checked out, and its work tree would no longer agree with it",
                    visible(branch)
                ),
                "commit to another branch and merge that, or use nullctl task apply",
            ));
        }
        let head = repository.resolve(&format!("refs/heads/{branch}^{{commit}}"))?.unwrap_or_default();
        let parent = match head.is_empty() {
            false => head.clone(),
            true => repository.resolve("HEAD^{commit}")?.ok_or_else(|| at(&"there is no commit yet"))?,
        };
        Ok(Place { repository, head, parent })
    }
}

/// Refuses what git would not take for a branch's name.
pub fn check_branch(repository: &Repository, branch: &str, example: &str) -> Result<(), Failure> {
    let mut git = repository.command();
    git.args(["check-ref-format", &format!("refs/heads/{branch}")]);
    match branch.starts_with('-') || repository.run("check-ref-format", &mut git, b"").is_err() {
        true => Err(Failure::usage(
            format!("`{}` cannot name a branch", visible(branch)),
            format!("write for example {example}"),
        )),
        false => Ok(()),
    }
}

/// Asks the node, waits for the approval, and takes the patch.
fn ask(context: &Context, params: &TaskIntegrate) -> Result<(Vec<u8>, Integrated), Failure> {
    let mut meter = Meter::new(context.json);
    if !context.json {
        eprintln!("waiting for somebody to approve it: nullctl approvals");
    }
    let link = context.ask("task.integrate", params, Silence::Unbounded)?;
    let received = receive(link, &mut |request: &Request| match note::<Progress>(request, "progress")? {
        Some(progress) => {
            meter.show("integrate", &progress);
            context.note(request)
        }
        None => context.note(request),
    });
    meter.done();
    let (bytes, result) = received?;
    Ok((bytes, typed(&result)?))
}

/// The first line of a commit.
fn subject(task: &TaskStatus, given: Option<&str>) -> String {
    let goal = task.goal.lines().next().unwrap_or_default();
    let subject: String = plain(given.unwrap_or(goal)).chars().take(72).collect();
    if subject.is_empty() { format!("{}: verified", task.id) } else { subject }
}

/// One line without control characters.
pub fn plain(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.trim().to_owned()
}

fn trailers(task: &TaskStatus, summary: &PatchSummary, integrated: &Integrated) -> String {
    format!(
        "NullBox-Task: {}\nNullBox-Patch: {}\nNullBox-Result: {}\nNullBox-Attestation: {}\nNullBox-Approval: {} ({})\n",
        task.id, summary.digest, summary.result, summary.receipt, integrated.approval, integrated.receipt
    )
}

/// Makes the commit, without a branch.
fn commit(
    repository: Repository,
    parent: &str,
    patch: &Patch,
    result: Digest,
    message: &str,
) -> Result<(Repository, String), Failure> {
    let index = repository.own("index");
    let git = |words: &[&str]| -> Command {
        let mut git = repository.command();
        git.env("GIT_INDEX_FILE", &index).args(words);
        git
    };
    let one = |what: &str, git: &mut Command, input: &[u8]| -> Result<String, Failure> {
        Ok(String::from_utf8_lossy(&repository.run(what, git, input)?).trim().to_owned())
    };
    one("read-tree", &mut git(&["read-tree", parent]), b"")?;
    let none = "0".repeat(parent.len());
    let (mut removals, mut additions) = (Vec::new(), Vec::new());
    for (path, change) in patch.set.changes() {
        if matches!(&change.old, Some(Entry::File { .. } | Entry::Link { .. })) {
            removals.extend_from_slice(format!("0 {none}\t{path}\0").as_bytes());
        }
        let (mode, content) = match &change.new {
            Some(Entry::File { is_executable: true, .. }) => ("100755", patch.content(path)),
            Some(Entry::File { .. }) => ("100644", patch.content(path)),
            Some(Entry::Link { target }) => ("120000", target.as_bytes()),
            Some(Entry::Directory) | None => continue,
        };
        let blob = one("hash-object", &mut git(&["hash-object", "-w", "--stdin", "--no-filters"]), content)?;
        additions.extend_from_slice(format!("{mode} {blob}\t{path}\0").as_bytes());
    }
    removals.append(&mut additions);
    one("update-index", &mut git(&["update-index", "-z", "--index-info"]), &removals)?;
    let tree = one("write-tree", &mut git(&["write-tree"]), b"")?;
    let mut making = git(&["commit-tree", &tree, "-p", parent]);
    for (name, key) in [("NAME", "user.name"), ("EMAIL", "user.email")] {
        if let Some(value) = repository.configured(key)? {
            for role in ["AUTHOR", "COMMITTER"] {
                let variable = format!("GIT_{role}_{name}");
                if std::env::var_os(&variable).is_none() {
                    making.env(variable, &value);
                }
            }
        }
    }
    let commit = one("commit-tree", &mut making, message.as_bytes())?;
    // What git made of it is read back: the commit holds the tree that was verified, or no branch gets it.
    let made = Tree::of_commit(repository, &commit, String::new())?;
    let digest = made.digested()?.digest();
    match (digest == result, made.into_repository()) {
        (true, Some(repository)) => Ok((repository, commit)),
        _ => Err(Failure::local(
            status::FAILED,
            format!("the commit would hold the tree {digest}, and {result} was verified"),
            "what is committed is the tree that was verified",
            "submodules are no part of a task's tree; use nullctl task apply",
        )),
    }
}

/// The address of a remote. One that the repository's configuration names must be of a plain transport.
fn remote_url(repository: &Repository, remote: &str) -> Result<String, Failure> {
    let named = match repository.configured(&format!("remote.{remote}.pushurl"))? {
        Some(url) => Some(url),
        None => repository.configured(&format!("remote.{remote}.url"))?,
    };
    let is_plain = |url: &str| {
        let is_scp = url.split_once(':').is_some_and(|(host, path)| {
            !host.is_empty() && !host.contains('/') && !path.starts_with(':') && !path.starts_with("//")
        });
        !url.starts_with('-') && (TRANSPORTS.iter().any(|start| url.starts_with(start)) || is_scp)
    };
    match named {
        Some(url) if is_plain(&url) => Ok(url),
        Some(url) => Err(Failure::usage(
            format!("the repository's remote {} is {}", visible(remote), visible(&shown(&url))),
            "the repository may only name https, ssh, http or git; give the address itself with --push if you mean it",
        )),
        None if remote.starts_with('/') || is_plain(remote) => Ok(remote.to_owned()),
        None => Err(Failure::usage(
            format!("there is no remote {}", visible(remote)),
            "name a remote of the repository, an address, or an absolute path",
        )),
    }
}

/// The address as questions, receipts and people see it: without what would let somebody in there.
pub fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    match user.split(':').next() {
        // A name by itself lets nobody in by ssh; elsewhere it may be a token.
        Some(name) if scheme == "ssh" && !name.is_empty() => format!("{scheme}://{name}@{host}{path}"),
        _ => format!("{scheme}://{host}{path}"),
    }
}

/// Pushes the commit, with the operator's own git settings and nothing of the repository's.
fn push(repository: &Repository, url: &str, commit: &str, branch: &str) -> Result<(), Failure> {
    let mut git = repository.command();
    git.env("GIT_ALLOW_PROTOCOL", "file:git:http:https:ssh").env_remove("GIT_TERMINAL_PROMPT");
    git.args(["push", "--no-verify", "--porcelain", "--no-signed", "--recurse-submodules=no"]);
    if url.starts_with('/') {
        // Hooks of a repository of this machine would run here.
        git.arg("--receive-pack=git -c core.hooksPath=/dev/null receive-pack");
    }
    git.arg("--").arg(url).arg(format!("{commit}:refs/heads/{branch}"));
    repository.run("push", &mut git, b"").map(drop).map_err(|failure| {
        let why = failure.error.map(|error| error.message).unwrap_or_default();
        Failure::local(
            status::FAILED,
            format!("the branch is made, and not pushed: {why}"),
            "",
            format!("push it yourself: git push {} {}", visible(&shown(url)), visible(branch)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_of_a_remotes_address_is_told() {
        for (url, told) in [
            ("https://user:token@example.org/a@b.git", "https://example.org/a@b.git"),
            ("https://token@example.org:8443/x", "https://example.org:8443/x"),
            ("http://a@b:c@example.org", "http://example.org"),
            ("ssh://git:secret@example.org/x", "ssh://git@example.org/x"),
            ("ssh://git@example.org:22/x", "ssh://git@example.org:22/x"),
            ("git@example.org:x.git", "git@example.org:x.git"),
            ("https://example.org/x", "https://example.org/x"),
            ("/srv/x@y.git", "/srv/x@y.git"),
        ] {
            assert_eq!(shown(url), told);
        }
    }
}
