//! What an archive holds: the OCI image layout or the output of docker save, read into one [`Plan`].
//!
//! Must hold: every document is bounded and, in an OCI layout, equal to its digest; one image comes out, for this machine's
//! platform. Must never: guess between two images.
//!
//! Source: OCI image-spec 1.1 (image-layout.md, image-index.md, manifest.md, config.md); moby image/spec v1.2 for docker save.

use abi::ids::Digest;
use abi::limits;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

use super::archive::{Archive, Extent, digest_differs};
use super::error::{ImportError, shown};
use super::layer::Layer;

/// Indexes inside indexes.
const NESTING_MAX: usize = 4;
const REBUILD: &str = "build the image again";
const ONE_IMAGE: &str = "save one image, for one platform, into an archive";

/// What is to be merged, and how the image wants to be run.
#[derive(Debug)]
pub struct Plan {
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    pub workdir: Option<String>,
    /// Entrypoint and Cmd, one after the other.
    pub entrypoint: Vec<String>,
    /// Stands for the image's content: of the documents that fix it by digest.
    pub fingerprint: Digest,
}

/// Reads the documents of the archive.
pub fn plan(archive: &Archive) -> Result<Plan, ImportError> {
    if archive.contains("index.json") && archive.contains("oci-layout") {
        return plan_oci(archive);
    }
    if archive.contains("manifest.json") {
        return plan_docker(archive);
    }
    Err(ImportError::archive(
        "",
        "neither index.json with oci-layout nor manifest.json is in it",
        "an OCI archive (skopeo copy ... oci-archive:FILE) or the output of docker save is expected",
    ))
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Config {
    os: String,
    architecture: String,
    rootfs: DiffIds,
    #[serde(default)]
    config: Option<RunConfig>,
}

#[derive(Debug, Deserialize)]
struct DiffIds {
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RunConfig {
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
}

fn plan_oci(archive: &Archive) -> Result<Plan, ImportError> {
    let index_bytes = archive.read("index.json")?;
    let index: Index = json("index.json", &index_bytes)?;
    let mut found = BTreeMap::new();
    let mut passed_over = Vec::new();
    choose(archive, index, 0, &mut found, &mut passed_over)?;
    let manifest = match (found.len(), found.pop_first()) {
        (1, Some((_, manifest))) => manifest,
        (0, _) => {
            let rule = format!(
                "holds no image for {}, only for: {}",
                wanted_platform(),
                shown(passed_over.join(", ").as_bytes())
            );
            return Err(ImportError::archive("index.json", rule, "save the image for this platform"));
        }
        (more, _) => {
            let rule = format!("holds {more} images for {}", wanted_platform());
            return Err(ImportError::archive("index.json", rule, ONE_IMAGE));
        }
    };
    let (place, manifest_bytes) = blob(archive, &manifest)?;
    let manifest: Manifest = json(&place, &manifest_bytes)?;
    let (config_place, config_bytes) = blob(archive, &manifest.config)?;
    let config: Config = json(&config_place, &config_bytes)?;
    let mut blobs = Vec::new();
    for descriptor in &manifest.layers {
        if !is_layer(&descriptor.media_type) {
            let rule = format!("a layer of media type {}", shown(descriptor.media_type.as_bytes()));
            return Err(ImportError::archive(
                &place,
                rule,
                "use tar layers, plain or packed with gzip or zstd",
            ));
        }
        let (digest, extent) = locate(archive, descriptor)?;
        blobs.push((member_of(&digest), extent, Some(digest)));
    }
    assemble(&config_place, config, blobs, fingerprint(&[&index_bytes]))
}

/// Collects the manifests for this platform, by digest: an archive may name one image twice.
fn choose(
    archive: &Archive,
    index: Index,
    depth: usize,
    found: &mut BTreeMap<String, Descriptor>,
    passed_over: &mut Vec<String>,
) -> Result<(), ImportError> {
    for descriptor in index.manifests {
        if found.len() + passed_over.len() > limits::ARCHIVE_ENTRIES_MAX {
            return Err(ImportError::archive("index.json", "names too many images", ONE_IMAGE));
        }
        let fits = descriptor.platform.as_ref().is_none_or(|p| fits(&p.os, &p.architecture));
        match descriptor.media_type.as_str() {
            _ if !fits => {
                passed_over.extend(descriptor.platform.map(|p| format!("{}/{}", p.os, p.architecture)))
            }
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                if depth >= NESTING_MAX {
                    return Err(ImportError::archive("index.json", "indexes nested too deep", ONE_IMAGE));
                }
                let (place, bytes) = blob(archive, &descriptor)?;
                choose(archive, json(&place, &bytes)?, depth + 1, found, passed_over)?;
            }
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => {
                found.insert(descriptor.digest.clone(), descriptor);
            }
            other => passed_over.push(other.to_string()),
        }
    }
    Ok(())
}

fn plan_docker(archive: &Archive) -> Result<Plan, ImportError> {
    let bytes = archive.read("manifest.json")?;
    let saved: Vec<Saved> = json("manifest.json", &bytes)?;
    let [saved] = saved.as_slice() else {
        let rule = format!("holds {} images", saved.len());
        return Err(ImportError::archive("manifest.json", rule, ONE_IMAGE));
    };
    let config_bytes = archive.read(&saved.config)?;
    // docker save names the config by its digest; where it does, the name is a promise.
    let name = saved.config.rsplit('/').next().unwrap_or_default();
    let named = format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse::<Digest>();
    if let Ok(want) = named {
        let got = digest_of(&config_bytes);
        if got != want {
            return Err(digest_differs(&saved.config, &want, &got));
        }
    }
    let mut blobs = Vec::new();
    for member in &saved.layers {
        blobs.push((member.clone(), archive.find(member)?, None));
    }
    let config: Config = json(&saved.config, &config_bytes)?;
    assemble(&saved.config, config, blobs, fingerprint(&[&bytes, &config_bytes]))
}

fn assemble(
    place: &str,
    config: Config,
    blobs: Vec<(String, Extent, Option<Digest>)>,
    fingerprint: Digest,
) -> Result<Plan, ImportError> {
    let wrong = |rule: String| ImportError::archive(place, rule, REBUILD);
    if !fits(&config.os, &config.architecture) {
        let image = format!("{}/{}", config.os, config.architecture);
        let rule = format!("the image is for {}, not {}", shown(image.as_bytes()), wanted_platform());
        return Err(ImportError::archive(place, rule, "save the image for this platform"));
    }
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != blobs.len() {
        return Err(wrong(format!("{} layers with {} diff_ids", blobs.len(), diff_ids.len())));
    }
    if blobs.is_empty() || blobs.len() > limits::OCI_LAYERS_MAX {
        return Err(wrong(format!("{} layers; 1 to {} can be merged", blobs.len(), limits::OCI_LAYERS_MAX)));
    }
    let mut layers = Vec::new();
    for ((member, extent, blob), diff_id) in blobs.into_iter().zip(diff_ids) {
        layers.push(Layer {
            member,
            extent,
            blob,
            diff_id: diff_id.parse().map_err(|error| wrong(format!("diff_ids: {error}")))?,
        });
    }
    let run = config.config.unwrap_or_default();
    let entrypoint = [run.entrypoint, run.cmd].into_iter().flatten().flatten().collect();
    Ok(Plan {
        layers,
        env: checked_env(run.env.unwrap_or_default()).map_err(wrong)?,
        workdir: checked_workdir(run.working_dir.unwrap_or_default()).map_err(wrong)?,
        entrypoint: checked_entrypoint(entrypoint).map_err(wrong)?,
        fingerprint,
    })
}

fn checked_env(env: Vec<String>) -> Result<Vec<String>, String> {
    let bytes = json_bytes(&env);
    if env.len() > limits::ENV_VARS_MAX || bytes > limits::OCI_ENV_BYTES_MAX {
        return Err(format!(
            "Env has {} variables in {bytes} bytes of JSON; at most {} in {} can be kept",
            env.len(),
            limits::ENV_VARS_MAX,
            limits::OCI_ENV_BYTES_MAX
        ));
    }
    let well_formed = |text: &String| text.find('=').is_some_and(|at| at > 0) && !text.contains('\0');
    match env.iter().find(|text| !well_formed(text)) {
        Some(text) => Err(format!("Env has `{}`, which is not KEY=VALUE", shown(text.as_bytes()))),
        None => Ok(env),
    }
}

fn checked_entrypoint(entrypoint: Vec<String>) -> Result<Vec<String>, String> {
    let bytes = json_bytes(&entrypoint);
    if bytes > limits::OCI_ENV_BYTES_MAX {
        let most = limits::OCI_ENV_BYTES_MAX;
        return Err(format!("Entrypoint and Cmd take {bytes} bytes of JSON; at most {most} can be kept"));
    }
    Ok(entrypoint)
}

/// How much of an answer's line these texts take.
fn json_bytes(texts: &[String]) -> usize {
    serde_json::to_string(texts).map_or(usize::MAX, |text| text.len())
}

fn checked_workdir(workdir: String) -> Result<Option<String>, String> {
    if workdir.is_empty() {
        return Ok(None);
    }
    let parts_ok = workdir.split('/').all(|part| part != "..");
    if !workdir.starts_with('/')
        || !parts_ok
        || workdir.contains('\0')
        || workdir.len() > limits::PATH_BYTES_MAX
    {
        return Err(format!("WorkingDir `{}` is not a plain absolute path", shown(workdir.as_bytes())));
    }
    Ok(Some(workdir))
}

/// A small blob, equal to its descriptor's digest and size.
fn blob(archive: &Archive, descriptor: &Descriptor) -> Result<(String, Vec<u8>), ImportError> {
    let (want, _) = locate(archive, descriptor)?;
    let place = member_of(&want);
    let bytes = archive.read(&place)?;
    let got = digest_of(&bytes);
    if got != want {
        return Err(digest_differs(&place, &want, &got));
    }
    Ok((place, bytes))
}

fn locate(archive: &Archive, descriptor: &Descriptor) -> Result<(Digest, Extent), ImportError> {
    let digest: Digest = descriptor.digest.parse().map_err(|error: abi::ids::IdError| {
        ImportError::archive("index.json", error.to_string(), "use sha256 digests")
    })?;
    let place = member_of(&digest);
    let extent = archive.find(&place)?;
    if extent.size != descriptor.size {
        let rule = format!("{} bytes, not the {} of its descriptor", extent.size, descriptor.size);
        return Err(ImportError::archive(place, rule, "fetch or write the archive again"));
    }
    Ok((digest, extent))
}

fn member_of(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn is_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

/// Our architecture in OCI's words (Go's GOARCH).
fn goarch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn fits(os: &str, architecture: &str) -> bool {
    os == "linux" && architecture == goarch()
}

fn wanted_platform() -> String {
    format!("linux/{}", goarch())
}

fn json<T: DeserializeOwned>(place: &str, bytes: &[u8]) -> Result<T, ImportError> {
    serde_json::from_slice(bytes).map_err(|error| ImportError::archive(place, error.to_string(), REBUILD))
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

fn fingerprint(documents: &[&[u8]]) -> Digest {
    let mut hash = Sha256::new();
    for document in documents {
        hash.update((document.len() as u64).to_le_bytes());
        hash.update(document);
    }
    Digest(hash.finalize().into())
}
