//! The S3 side of a sync: objects `DIGEST.bundle` and `DIGEST.hashes` under a prefix.
//!
//! Must never: take a credential from the command line, or ask the network for one.

use abi::ids::Digest;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig};
use std::collections::BTreeSet;
use std::time::Duration;
use url::Url;

use super::index::Index;
use crate::failure::{Failure, status};
use crate::print::visible;
use crate::run::is_loopback;

/// An object is held in memory whole; a node's own bundles of a sync stay below it.
const OBJECT_BYTES_MAX: u64 = 256 * 1024 * 1024;
const DENIED: &str = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do";
/// How often, and for how long, one request is tried again.
const TRIES_MAX: usize = 4;
const TRIES: Duration = Duration::from_secs(30);

/// An open store. Each call blocks.
pub struct Store {
    runtime: tokio::runtime::Runtime,
    s3: AmazonS3,
    prefix: Path,
    /// As it was named.
    shown: String,
}

/// What is there.
#[derive(Debug, Default)]
pub struct Listed {
    pub bundles: BTreeSet<Digest>,
    /// Bundles that have a `.hashes` object.
    pub indices: BTreeSet<Digest>,
}

/// Why a bundle was not read.
pub enum GetError {
    TooLarge(u64),
    Failed(Failure),
}

impl Store {
    /// Reads what is needed from the environment; nothing is asked of the store yet.
    pub fn open(url: &str, endpoint: Option<&str>, region: Option<&str>) -> Result<Store, Failure> {
        let (bucket, prefix) = place(url)?;
        let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let needed = |name: &str| {
            named(name).ok_or_else(|| {
                Failure::usage(
                    format!("{name} is not set"),
                    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN) in the environment",
                )
            })
        };
        let region = region.map(str::to_owned).or_else(|| named("AWS_REGION"));
        let region = region.or_else(|| named("AWS_DEFAULT_REGION")).unwrap_or_else(|| "us-east-1".into());
        let endpoint = endpoint.map(str::to_owned).or_else(|| named("AWS_ENDPOINT_URL"));
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(region)
            .with_access_key_id(needed("AWS_ACCESS_KEY_ID")?)
            .with_secret_access_key(needed("AWS_SECRET_ACCESS_KEY")?)
            .with_retry(RetryConfig {
                max_retries: TRIES_MAX,
                retry_timeout: TRIES,
                ..RetryConfig::default()
            });
        if let Some(token) = named("AWS_SESSION_TOKEN") {
            builder = builder.with_token(token);
        }
        if let Some(endpoint) = endpoint {
            let http = allow_http(&endpoint, named("AWS_ALLOW_HTTP").as_deref() == Some("true"))?;
            builder = builder.with_endpoint(endpoint).with_allow_http(http);
        }
        // A second one would be the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let s3 = builder.build().map_err(|error| failed(url, "open", &error))?;
        Ok(Store { runtime, s3, prefix, shown: url.trim_end_matches('/').to_owned() })
    }

    /// A bundle's address, for messages.
    pub fn shown(&self, name: &Digest) -> String {
        format!("{}/{}.bundle", self.shown, name.hex())
    }

    /// All that is there. Objects with other names are no concern of a sync.
    pub fn list(&self) -> Result<Listed, Failure> {
        let found = self.runtime.block_on(self.s3.list_with_delimiter(Some(&self.prefix)));
        let found = found.map_err(|error| failed(&self.shown, "list", &error))?;
        let mut listed = Listed::default();
        for object in found.objects {
            let Some((hex, kind)) = object.location.filename().and_then(|name| name.split_once('.')) else {
                continue;
            };
            match (format!("sha256:{hex}").parse(), kind) {
                (Ok(name), "bundle") => listed.bundles.insert(name),
                (Ok(name), "hashes") => listed.indices.insert(name),
                _ => false,
            };
        }
        Ok(listed)
    }

    /// A bundle's bytes, not checked.
    pub fn bundle(&self, name: &Digest) -> Result<Vec<u8>, GetError> {
        self.fetch(&self.path(name, "bundle"))
    }

    /// A bundle's index; none when what is there is not one.
    pub fn index(&self, name: &Digest) -> Result<Option<Index>, Failure> {
        match self.fetch(&self.path(name, "hashes")) {
            Ok(bytes) => Ok(std::str::from_utf8(&bytes).ok().and_then(Index::parse)),
            Err(GetError::TooLarge(_)) => Ok(None),
            Err(GetError::Failed(failure)) if failure.exit == status::NOT_FOUND => Ok(None),
            Err(GetError::Failed(failure)) => Err(failure),
        }
    }

    pub fn put_bundle(&self, name: &Digest, bytes: Vec<u8>) -> Result<(), Failure> {
        self.put(&self.path(name, "bundle"), bytes)
    }

    pub fn put_index(&self, name: &Digest, index: &Index) -> Result<(), Failure> {
        self.put(&self.path(name, "hashes"), index.text().into_bytes())
    }

    fn path(&self, name: &Digest, kind: &str) -> Path {
        self.prefix.clone().join(format!("{}.{kind}", name.hex()))
    }

    fn fetch(&self, path: &Path) -> Result<Vec<u8>, GetError> {
        let failure = |error: &Error| GetError::Failed(failed(&self.shown, path.as_ref(), error));
        self.runtime.block_on(async {
            let found = self.s3.get(path).await.map_err(|error| failure(&error))?;
            if found.meta.size > OBJECT_BYTES_MAX {
                return Err(GetError::TooLarge(found.meta.size));
            }
            Ok(found.bytes().await.map_err(|error| failure(&error))?.to_vec())
        })
    }

    /// Puts an object where there is none. Its name follows from its content, so one that is there is this one; a server that
    /// does not know If-None-Match gets it again.
    fn put(&self, path: &Path, bytes: Vec<u8>) -> Result<(), Failure> {
        let payload = PutPayload::from(bytes);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.runtime.block_on(self.s3.put_opts(path, payload.clone(), options));
        let put = match put {
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                self.runtime.block_on(self.s3.put(path, payload))
            }
            other => other,
        };
        match put {
            Ok(_) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(()),
            Err(error) => Err(failed(&self.shown, path.as_ref(), &error)),
        }
    }
}

/// Bucket and prefix of `s3://BUCKET/PREFIX`. Pure.
fn place(url: &str) -> Result<(String, Path), Failure> {
    let wrong = || Failure::usage(format!("`{url}` is no place in an S3 store"), "write s3://BUCKET/PREFIX");
    let (bucket, prefix) =
        url.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
    let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|_| wrong())?;
    if bucket.is_empty() || prefix.as_ref().is_empty() {
        return Err(wrong());
    }
    Ok((bucket.to_owned(), prefix))
}

/// Memory does not travel unencrypted, but on this machine or where the operator says so. Pure.
fn allow_http(endpoint: &str, said_so: bool) -> Result<bool, Failure> {
    let wrong =
        |why: &str| Failure::usage(format!("--endpoint {endpoint}: {why}"), "write https://HOST[:PORT]");
    let url = Url::parse(endpoint).map_err(|error| wrong(&error.to_string()))?;
    if url.host().is_none() {
        return Err(wrong("it has no host"));
    }
    match url.scheme() {
        "https" => Ok(false),
        "http" if is_loopback(&url) || said_so => Ok(true),
        "http" => Err(wrong("http would show the memory to the network (AWS_ALLOW_HTTP=true allows it)")),
        _ => Err(wrong("neither https nor http")),
    }
}

fn failed(store: &str, what: &str, error: &Error) -> Failure {
    // object_store has no name for what S3 says of a wrong key on a list.
    let text = told(error);
    let denied = ["SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied"]
        .iter()
        .any(|code| text.contains(code));
    let (exit, remedy) = match error {
        Error::NotFound { .. } => (status::NOT_FOUND, "check the bucket's name; make it first"),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (status::DENIED, DENIED),
        _ if denied => (status::DENIED, DENIED),
        _ => (status::UNREACHABLE, "try again: what was done is kept; check --endpoint and --region"),
    };
    let text: String = text.chars().take(600).collect();
    Failure::local(exit, format!("{store}: {what}: {}", visible(&text)), "", remedy)
}

/// An error with its causes.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if !text.contains(&cause.to_string()) {
            text.push_str(&format!(": {cause}"));
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_a_bucket_and_a_prefix() {
        let (bucket, prefix) = place("s3://bucket/a/b/").unwrap_or_else(|_| panic!("refused"));
        assert_eq!((bucket.as_str(), prefix.as_ref()), ("bucket", "a/b"));
        for wrong in ["", "bucket/a", "s3://", "s3://bucket", "s3://bucket/", "s3:///a", "s3://bucket//a//b"]
        {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_goes_over_http_to_this_machine_only() {
        let allowed = |endpoint, said| allow_http(endpoint, said).ok();
        assert_eq!(allowed("https://s3.example.org", false), Some(false));
        assert_eq!(allowed("http://127.0.0.1:9000", false), Some(true));
        assert_eq!(allowed("http://[::1]:9000", false), Some(true));
        assert_eq!(allowed("http://s3.example.org", false), None);
        assert_eq!(allowed("http://s3.example.org", true), Some(true));
        assert_eq!(allowed("ftp://s3.example.org", true), None);
    }
}
