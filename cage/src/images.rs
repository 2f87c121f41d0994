//! `image.*`: what the store holds, for operators.
//!
//! Must hold: an image goes only if nothing runs from it and no disk of an agent lies above it, from before its receipt to its last
//! file; its receipt is durable first.

use abi::control::{Image, ImageDetails, ImageImport, ImageList, ImageListing, ImageRef, ImagesRemoved};
use abi::door::{Call, Outcome};
use abi::ids::Digest;
use abi::ledger::Event;
use abi::limits;
use abi::manifest::{RootfsRef, rootfs_name_ok};
use abi::rpc::{Code, Request, RpcError};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use crate::agents::Cage;
use crate::store::{Source, StoreError};
use crate::{disks, imports, life, manifests};

/// Images of one answer, as JSON: they fit a line with room for what is around them. One alone always does, by the limits on names,
/// environment and command.
const PAGE_BYTES_MAX: usize = limits::LINE_BYTES_MAX / 2;

const RULE: &str = "an image goes only when nothing runs from it and no disk lies above it";

/// Answers a call.
pub fn run(cage: &Arc<Cage>, call: Call<'_>) -> Result<Outcome, RpcError> {
    match call.request.method.as_str() {
        "image.list" => {
            let ImageListing { after } = call.request.params()?;
            Ok(Outcome::Result(json!(page(cage.store.list(), after))))
        }
        "image.inspect" => {
            let ImageRef { image } = call.request.params()?;
            Ok(Outcome::Result(json!(inspect(cage, &image)?)))
        }
        "image.remove" => {
            let ImageRef { image } = call.request.params()?;
            Ok(Outcome::Result(json!(remove(cage, &image, &call.caller.to_string())?)))
        }
        "image.prune" => Ok(Outcome::Result(json!(prune(cage, &call.caller.to_string())?))),
        "image.import" => import(cage, call),
        other => Err(RpcError::new(Code::UNKNOWN_METHOD, format!("cage has no method `{other}`"))),
    }
}

/// The images after a digest, as many as fit.
fn page(images: Vec<Image>, after: Option<Digest>) -> ImageList {
    let mut list = ImageList { images: Vec::new(), next: None };
    let mut bytes = 0;
    for image in images {
        if after.is_some_and(|after| image.digest <= after) {
            continue;
        }
        bytes += serde_json::to_string(&image).map_or(PAGE_BYTES_MAX, |text| text.len());
        if let Some(last) = list.images.last()
            && bytes > PAGE_BYTES_MAX
        {
            list.next = Some(last.digest);
            break;
        }
        list.images.push(image);
    }
    list
}

/// What an operator means by a text: a name or a digest.
fn reference(text: &str) -> Result<RootfsRef, RpcError> {
    if let Ok(digest) = text.parse() {
        return Ok(RootfsRef::Digest(digest));
    }
    if rootfs_name_ok(text) {
        return Ok(RootfsRef::Name(text.to_owned()));
    }
    let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(RpcError::new(
        Code::INVALID_PARAMS,
        format!("`{shown}` is neither a rootfs name nor a sha256: digest"),
    )
    .explained("a name has 1 to 64 of a-z 0-9 . _ -, a digest 64 hex digits", "see image list"))
}

fn missing(error: StoreError) -> RpcError {
    let code = match error {
        StoreError::UnknownName(_) | StoreError::UnknownDigest(_) => Code::NOT_FOUND,
        StoreError::BeingRemoved(_) | StoreError::Needed { .. } => Code::CONFLICT,
        _ => Code::FAILED,
    };
    let told = RpcError::new(code, error.to_string());
    match error {
        StoreError::Needed { agent, .. } => told.explained(RULE, format!("agent stop {agent}, or wait")),
        _ => told,
    }
}

fn inspect(cage: &Cage, text: &str) -> Result<ImageDetails, RpcError> {
    let (digest, _, image) = cage.store.resolve(&reference(text)?).map_err(missing)?;
    let manifests = manifests::load(&cage.places.config).known;
    let means = |reference: &RootfsRef| match reference {
        RootfsRef::Digest(other) => *other == digest,
        RootfsRef::Name(name) => image.names.contains(name),
    };
    let agents = manifests.into_iter().filter(|(_, loaded)| means(&loaded.manifest.rootfs));
    Ok(ImageDetails {
        agents: agents.map(|(name, _)| name).collect(),
        entrypoint: cage.store.entrypoint(&digest),
        image,
    })
}

/// Removes an image that nobody needs, as it was seen, with its names, after the receipt; the bytes it gave back. Nobody gets it
/// meanwhile: a start or a name that comes between is refused.
fn take_away(cage: &Cage, seen: &Image, by: &str) -> Result<u64, RpcError> {
    let digest = seen.digest;
    let _hold = cage.store.holds.take_away(digest).map_err(missing)?;
    let (_, _, image) = cage.store.resolve(&RootfsRef::Digest(digest)).map_err(missing)?;
    if image.names != seen.names {
        return Err(RpcError::new(Code::CONFLICT, format!("{digest} stays: its names have just changed"))
            .explained("an image goes with the names it was seen with", "see image list"));
    }
    if let Some(disk) = disks::above(cage).map_err(not_told)?.get(&digest) {
        let what = format!("{digest} stays: {disk} was written above it");
        return Err(RpcError::new(Code::CONFLICT, what).explained(RULE, format!("remove {disk} first")));
    }
    receipt(cage, digest, image.names, by)?;
    cage.store.remove(&digest).map_err(missing)
}

fn not_told(error: impl std::fmt::Display) -> RpcError {
    RpcError::new(Code::FAILED, format!("what lies above images cannot be told: {error}"))
}

fn remove(cage: &Cage, text: &str, by: &str) -> Result<ImagesRemoved, RpcError> {
    let reference = reference(text)?;
    let (digest, _, image) = cage.store.resolve(&reference).map_err(missing)?;
    let mut removed = ImagesRemoved { images: Vec::new(), bytes: 0 };
    match reference {
        RootfsRef::Name(name) if image.names.len() > 1 => {
            receipt(cage, digest, vec![name.clone()], by)?;
            cage.store.forget(&name).map_err(missing)?;
        }
        _ => {
            removed.bytes = take_away(cage, &image, by)?;
            removed.images.push(digest);
        }
    }
    Ok(removed)
}

fn prune(cage: &Cage, by: &str) -> Result<ImagesRemoved, RpcError> {
    let manifests = manifests::load(&cage.places.config).known;
    let wanted = manifests.values().filter_map(|loaded| match loaded.manifest.rootfs {
        RootfsRef::Digest(digest) => Some(digest),
        RootfsRef::Name(_) => None,
    });
    let wanted: BTreeSet<Digest> = wanted.collect();
    let mut removed = ImagesRemoved { images: Vec::new(), bytes: 0 };
    for image in cage.store.list() {
        if !image.names.is_empty() || wanted.contains(&image.digest) {
            continue;
        }
        match take_away(cage, &image, by) {
            Ok(bytes) => {
                removed.bytes += bytes;
                removed.images.push(image.digest);
            }
            // Somebody needs it, or another removes it.
            Err(error) if error.code == Code::CONFLICT => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// No receipt, no removal.
fn receipt(cage: &Cage, digest: Digest, names: Vec<String>, by: &str) -> Result<(), RpcError> {
    let event = Event::ImageRemoved { digest, names, by: by.to_owned() };
    match cage.ledger.append(event) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(RpcError::new(Code::UNAVAILABLE, format!("no receipt, so {digest} stays: {error}")))
        }
    }
}

fn import(cage: &Cage, call: Call<'_>) -> Result<Outcome, RpcError> {
    let want: ImageImport = call.request.params()?;
    let invalid = |what: String| RpcError::new(Code::INVALID_PARAMS, what);
    if want.bytes > limits::ARCHIVE_BYTES_MAX {
        let most = limits::ARCHIVE_BYTES_MAX;
        return Err(invalid(format!("{} bytes: at most {most} are allowed", want.bytes)));
    }
    let mut writer = call.connection.writer().map_err(|error| invalid(error.to_string()))?;
    // Imports come one at a time: a sender that stands still must not hold up the others, or agents that wait for theirs.
    let patience = Duration::from_millis(limits::CALLER_STALL_MS_MAX);
    let stream = call.connection.stream();
    stream.set_read_timeout(Some(patience)).map_err(|error| invalid(error.to_string()))?;
    let mut body = call.connection.take(want.bytes);
    let mut told = None;
    let source = Source::Stream { reader: &mut body, bytes: want.bytes };
    let outcome = cage.store.import(source, &want.name, &mut |stage, done, total| {
        let step = (stage, done * 100 / total.max(1));
        if told != Some(step) {
            told = Some(step);
            let progress = imports::progress(&want.name, stage, done, total);
            // A caller that does not listen still gets its import; the answer will fail.
            let _ = writer.write_line(&Request::notification("progress", json!(progress)));
        }
    });
    let image = outcome
        .map_err(|error| RpcError::new(Code::FAILED, format!("the archive was not imported: {error}")))?;
    cage.imports.forgive(&want.name);
    life::record(
        cage,
        Event::RootfsImported { name: want.name, digest: image.digest, archive: image.archive },
    );
    Ok(Outcome::Result(json!(image)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Agent;
    use crate::agents::{Cause, bench};
    use crate::state;
    use crate::store::archives;
    use abi::control::Layer;
    use std::io::Write;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// The largest image that the store lets in.
    fn largest(number: u8) -> Image {
        let digest = Digest([number; 32]);
        let text = |bytes| "\u{1}".repeat(bytes);
        Image {
            digest,
            names: (0..limits::STORE_IMAGES_MAX).map(|n| format!("{n:064}")).collect(),
            bytes: u64::MAX,
            layers: vec![Layer { digest, bytes: u64::MAX, images: u32::MAX }; limits::ROOTFS_DISKS_MAX],
            archive: digest,
            env: vec![text(limits::OCI_ENV_BYTES_MAX / 6)],
            workdir: Some(text(limits::PATH_BYTES_MAX)),
        }
    }

    #[test]
    fn every_page_of_the_largest_list_fits_a_line_and_nothing_is_left_out() {
        let images: Vec<Image> = (0..=u8::MAX).map(largest).collect();
        assert!(images.len() >= limits::STORE_IMAGES_MAX);
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let list = page(images.clone(), after);
            assert!(json!(list).to_string().len() + 512 < limits::LINE_BYTES_MAX);
            seen.extend(list.images.into_iter().map(|image| image.digest));
            match list.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, images.iter().map(|image| image.digest).collect::<Vec<_>>());
    }

    #[test]
    fn details_of_the_largest_image_fit_a_line() {
        let details = ImageDetails {
            image: largest(1),
            agents: (0..limits::MANIFESTS_MAX).map(|n| format!("{n:032}").parse().unwrap()).collect(),
            entrypoint: vec!["\u{1}".repeat(limits::OCI_ENV_BYTES_MAX / 6)],
        };
        assert!(json!(details).to_string().len() + 512 < limits::LINE_BYTES_MAX);
    }

    #[test]
    fn what_is_neither_name_nor_digest_is_refused() {
        for text in ["", "Upper", "sha256:12", "a/b", "../x"] {
            assert_eq!(reference(text).unwrap_err().code, Code::INVALID_PARAMS, "{text}");
        }
        assert!(matches!(reference("python"), Ok(RootfsRef::Name(_))));
        assert!(matches!(reference(&Digest([1; 32]).to_string()), Ok(RootfsRef::Digest(_))));
    }

    /// A cage with the image `r`, whose ledger stops at a kind of event: it tells that it was asked, and waits until it may answer.
    fn stalled(dir: &std::path::Path, at: &'static str) -> (Arc<Cage>, Receiver<()>, Sender<()>) {
        let ((asked, is_asked), (may, waits)) = (channel(), channel());
        let cage = bench::cage_with(dir, &["a"], move |line| {
            if line.contains(at) {
                asked.send(()).unwrap();
                let _ = waits.recv(); // an end of the other side lets it go on too
            }
        });
        name_image(&cage, "r").unwrap();
        (cage, is_asked, may)
    }

    fn name_image(cage: &Cage, name: &str) -> Result<Image, crate::store::ImportError> {
        let mut layer = archives::Layer::default();
        layer.file("x", 0o755, b"x");
        let archive = archives::Archive::of(vec![layer], archives::Packing::Plain).oci();
        let source = Source::Stream { reader: &mut &archive[..], bytes: archive.len() as u64 };
        cage.store.import(source, name, &mut |_, _, _| {})
    }

    /// How the present life ends.
    fn ends(agent: &Agent) -> String {
        let mut facts = agent.facts();
        while state::alive(facts.state.now()) {
            facts = agent.wait(facts, Duration::from_secs(1));
        }
        facts.detail.clone()
    }

    #[test]
    fn nobody_starts_from_an_image_or_names_it_while_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (cage, is_asked, may) = stalled(dir.path(), "image_removed");
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| remove(&cage, "r", "alice"));
            is_asked.recv().unwrap();
            let (agent, _) = cage.start(&"a".parse().unwrap(), Cause::asked("bob")).unwrap();
            assert!(ends(&agent).contains("is being removed"), "{}", agent.facts().detail);
            assert!(name_image(&cage, "s").unwrap_err().to_string().contains("is being removed"));
            assert_eq!(remove(&cage, "r", "bob").unwrap_err().code, Code::CONFLICT);
            drop(may);
            assert_eq!(removing.join().unwrap().unwrap().images.len(), 1);
        });
        assert!(cage.store.list().is_empty());
        let (agent, _) = cage.start(&"a".parse().unwrap(), Cause::asked("bob")).unwrap();
        assert!(ends(&agent).contains("no rootfs `r`"));
        name_image(&cage, "s").unwrap();
    }

    #[test]
    fn an_image_that_an_agent_starts_from_stays_until_that_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (cage, is_asked, may) = stalled(dir.path(), "agent_starting");
        let (agent, _) = cage.start(&"a".parse().unwrap(), Cause::asked("bob")).unwrap();
        is_asked.recv().unwrap();
        let error = remove(&cage, "r", "alice").unwrap_err();
        assert!(error.code == Code::CONFLICT && error.message.contains("agent a runs from it"), "{error}");
        cage.store.forget("r").unwrap();
        assert!(prune(&cage, "alice").unwrap().images.is_empty());
        drop(may);
        ends(&agent);
        assert_eq!(prune(&cage, "alice").unwrap().images.len(), 1);
    }

    #[test]
    fn an_image_that_has_just_got_a_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cage = bench::cage(dir.path(), &[]);
        let seen = name_image(&cage, "r").unwrap();
        name_image(&cage, "s").unwrap();
        assert!(take_away(&cage, &seen, "alice").unwrap_err().message.contains("just changed"));
        assert_eq!(cage.store.list().len(), 1);
    }

    #[test]
    fn a_sender_of_an_archive_has_bounded_time_for_each_piece() {
        let dir = tempfile::tempdir().unwrap();
        let cage = crate::agents::bench::cage(dir.path(), &[]);
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        (&far).write_all(b"cut").unwrap();
        drop(far);
        let mut connection = abi::wire::Connection::new(near);
        let request = Request::call(1, "image.import", json!(ImageImport { name: "r".into(), bytes: 10 }));
        let caller = abi::identity::Caller::Local { uid: 0 };
        let call = Call { caller: &caller, request: &request, connection: &mut connection };
        assert!(import(&cage, call).unwrap_err().message.contains("3 of 10 bytes came"));
        let patience = Duration::from_millis(limits::CALLER_STALL_MS_MAX);
        assert_eq!(connection.stream().read_timeout().unwrap(), Some(patience));
    }
}
