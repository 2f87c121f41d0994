//! `image`: the rootfs store.

use abi::control::{
    Image, ImageDetails, ImageImport, ImageList, ImageListing, ImageRef, ImagesRemoved, Nothing, Progress,
};
use serde_json::json;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::note;
use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::Failure;
use crate::link::typed;
use crate::print::{Meter, Table, facts, size};

/// An import unpacks and compresses; the node reports progress, but a large layer takes its time.
const IMPORT_SILENCE: Duration = Duration::from_secs(600);

pub fn list(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let mut all = ImageList { images: Vec::new(), next: None };
    let mut after = None;
    loop {
        let link = context.ask("image.list", &ImageListing { after }, Silence::Ordinary)?;
        let list: ImageList = typed(&{ link }.result(&mut |request| context.note(request))?)?;
        all.images.extend(list.images);
        match list.next {
            Some(next) if after != Some(next) => after = Some(next),
            _ => break,
        }
    }
    if context.result_or_json(json!(all))?.is_none() {
        return Ok(0);
    }
    let mut table = Table::new(&["NAMES", "SIZE", "SHARED", "DIGEST"]);
    for image in &all.images {
        let names = if image.names.is_empty() { "-".into() } else { image.names.join(" ") };
        let shared = image.layers.iter().filter(|layer| layer.images > 1).map(|layer| layer.bytes).sum();
        table.row(&[&names, &size(image.bytes), &size(shared), &image.digest.to_string()]);
    }
    say(&table.render())?;
    Ok(0)
}

pub fn inspect(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    if let Some(result) = context.call("image.inspect", &image(given))? {
        say(&in_words(&typed(&result)?))?;
    }
    Ok(0)
}

pub fn remove(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    if let Some(result) = context.call("image.remove", &image(given))? {
        let removed: ImagesRemoved = typed(&result)?;
        match removed.images.first() {
            Some(digest) => say(&format!("{digest} is removed, {} freed\n", size(removed.bytes)))?,
            None => say("the name is removed; the image has others\n")?,
        }
    }
    Ok(0)
}

pub fn prune(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    if let Some(result) = context.call("image.prune", &Nothing {})? {
        let removed: ImagesRemoved = typed(&result)?;
        for digest in &removed.images {
            say(&format!("{digest}\n"))?;
        }
        say(&format!("{} removed, {} freed\n", removed.images.len(), size(removed.bytes)))?;
    }
    Ok(0)
}

fn image(given: &Arguments) -> ImageRef {
    ImageRef { image: given.required(0).to_owned() }
}

fn in_words(details: &ImageDetails) -> String {
    let image = &details.image;
    let listed = |list: Vec<String>| if list.is_empty() { "-".to_owned() } else { list.join(" ") };
    let mut pairs = vec![
        ("digest", image.digest.to_string()),
        ("names", listed(image.names.clone())),
        ("size", size(image.bytes)),
        ("archive", image.archive.to_string()),
        ("agents", listed(details.agents.iter().map(ToString::to_string).collect())),
        ("command", listed(details.entrypoint.iter().map(|part| format!("{part:?}")).collect())),
        ("workdir", image.workdir.clone().unwrap_or_else(|| "-".into())),
    ];
    pairs.extend(image.env.iter().map(|variable| ("env", variable.clone())));
    // From the bottom, as they are laid over one another.
    pairs.extend(image.layers.iter().map(|layer| {
        let shared = match layer.images {
            0 | 1 => String::new(),
            images => format!(", shared by {images} images"),
        };
        ("layer", format!("{} {}{shared}", layer.digest, size(layer.bytes)))
    }));
    facts(&pairs)
}

pub fn import(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let name = given
        .value("name")
        .ok_or_else(|| Failure::usage("image import: --name is missing", "write --name NAME"))?;
    if !abi::manifest::rootfs_name_ok(name) {
        return Err(Failure::usage(
            format!("`{name}` cannot name a rootfs"),
            "use 1 to 64 of a-z 0-9 . _ -, starting with a letter or digit",
        ));
    }
    let path = given.required(0);
    let unreadable =
        |error: io::Error| Failure::usage(format!("{path}: {error}"), "name an OCI archive (tar)");
    let mut file = if path == "-" { spool() } else { File::open(path) }.map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    let params = ImageImport { name: name.to_owned(), bytes };
    let mut meter = Meter::new(context.json);
    let mut link = context.ask("image.import", &params, Silence::AtMost(IMPORT_SILENCE))?;
    let body = link.body()?;
    let sender =
        std::thread::Builder::new().name("body".into()).spawn(move || send(&mut file, body, bytes))?;
    let result = link.result(&mut |request| {
        if let Some(progress) = note::<Progress>(request, "progress")? {
            meter.show("importing", &progress);
        }
        context.note(request)
    });
    meter.done();
    // The node's answer says more than a broken pipe; but a file that cannot be read is our own fault.
    if sender.is_finished()
        && let Ok(Err(error)) = sender.join()
    {
        return Err(unreadable(error));
    }
    if let Some(result) = context.result_or_json(result?)? {
        let image: Image = typed(&result)?;
        let shared: Vec<_> = image.layers.iter().filter(|layer| layer.images > 1).collect();
        let shared_bytes = size(shared.iter().map(|layer| layer.bytes).sum());
        let layers = match shared.len() {
            0 => String::new(),
            count => format!(", {count} of {} layers shared ({shared_bytes})", image.layers.len()),
        };
        say(&format!("{name} is {}, {}{layers}\n", image.digest, size(image.bytes)))?;
    }
    Ok(0)
}

/// Standard input in a file without a name.
fn spool() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("nullctl-import-{}", std::process::id()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    io::copy(&mut io::stdin().lock(), &mut file)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Sends exactly the announced bytes. An error is about the file; a connection that ends is told by the result.
fn send(file: &mut File, mut body: UnixStream, bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0u8; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        let part = chunk.get_mut(..want).unwrap_or_default();
        if let Err(error) = file.read_exact(part) {
            let _ = body.shutdown(std::net::Shutdown::Both); // it must not look complete
            return Err(error);
        }
        if body.write_all(part).is_err() {
            return Ok(());
        }
        left -= want as u64;
    }
    Ok(())
}
