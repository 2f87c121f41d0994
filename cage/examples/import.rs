//! Imports an archive into a store and says how long each stage took: `import ARCHIVE STORE NAME [stream]`.

use cage::store::{Source, Stage, Store};
use std::path::Path;
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [archive, store, name, rest @ ..] = args.as_slice() else {
        anyhow::bail!("usage: import ARCHIVE STORE NAME [stream]");
    };
    let started = Instant::now();
    let mut stage: Option<Stage> = None;
    let mut progress = |now: Stage, _done: u64, total: u64| {
        if stage != Some(now) {
            eprintln!("{:>8.1?} {} ({total} bytes)", started.elapsed(), now);
            stage = Some(now);
        }
    };
    let store = Store::open(Path::new(store))?;
    let image = if rest.is_empty() {
        store.import(Source::File(Path::new(archive)), name, &mut progress)?
    } else {
        let mut file = std::fs::File::open(archive)?;
        let bytes = file.metadata()?.len();
        let reader = &mut file;
        store.import(Source::Stream { reader, bytes }, name, &mut progress)?
    };
    eprintln!("{:>8.1?} done", started.elapsed());
    println!("{}", serde_json::to_string_pretty(&image)?);
    Ok(())
}
