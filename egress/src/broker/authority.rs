//! An agent's own certificate authority, for names whose TLS egress ends itself.
//!
//! Must hold: the key never leaves this process and lives as long as the agent's network; what it signs stands for the names that are
//! intercepted and for no other, and a client that checks name constraints believes nothing else.

use abi::ids::{HostName, Instance};
use abi::network::{NamePattern, NetworkGrant};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long before now a certificate begins: clocks differ.
const BEFORE: Duration = Duration::from_secs(2 * 86_400);
/// How long an authority holds. Its key is gone long before.
const AUTHORITY_FOR: Duration = Duration::from_secs(3650 * 86_400);
/// How long a leaf holds; each connection gets a new one.
const LEAF_FOR: Duration = Duration::from_secs(30 * 86_400);

/// The authority of one agent's network.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    patterns: Vec<NamePattern>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("patterns", &self.patterns).finish_non_exhaustive()
    }
}

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("a certificate cannot be made: {0}")]
    Made(#[from] rcgen::Error),
    #[error("a certificate cannot be used: {0}")]
    Used(#[from] rustls::Error),
    #[error("`{0}` was not intercepted when the agent's network was made; start the agent again")]
    Name(HostName),
}

impl Authority {
    /// For the intercepted names among these; none where no name is.
    pub fn new(instance: &Instance, grants: &[NetworkGrant]) -> Result<Option<Authority>, AuthorityError> {
        let intercepted = grants.iter().filter(|grant| grant.intercept);
        let patterns: Vec<NamePattern> = intercepted.map(|grant| grant.name.clone()).collect();
        if patterns.is_empty() {
            return Ok(None);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("NullBox authority of {instance}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let subtrees = patterns.iter().map(|pattern| GeneralSubtree::DnsName(subtree(pattern))).collect();
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: subtrees, excluded_subtrees: Vec::new() });
        hold(&mut params, AUTHORITY_FOR);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Some(Authority { issuer: Issuer::new(params, key), pem, patterns }))
    }

    /// The certificate that the guest trusts.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// TLS towards the guest as this name: TLS 1.2 or later, HTTP/1.1, a key of its own for the connection.
    pub fn server(&self, name: &HostName) -> Result<Arc<ServerConfig>, AuthorityError> {
        if !self.patterns.iter().any(|pattern| pattern.admits(name)) {
            return Err(AuthorityError::Name(name.clone()));
        }
        let mut params = CertificateParams::new([name.to_string()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        hold(&mut params, LEAF_FOR);
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// What a name constraint says of a pattern. It has no form for one label only: the leaf says the rest.
fn subtree(pattern: &NamePattern) -> String {
    match pattern {
        NamePattern::Exact(name) | NamePattern::Below(name) => name.to_string(),
    }
}

fn hold(params: &mut CertificateParams, time: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BEFORE);
    params.not_after = epoch + now + time;
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    fn shake(authority: &Authority, server: Arc<ServerConfig>, name: &str) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client =
            ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap())?;
        let mut server = ServerConnection::new(server)?;
        while client.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    fn authority(entries: &[(&str, bool)]) -> Option<Authority> {
        let grants: Vec<NetworkGrant> = entries
            .iter()
            .map(|(entry, intercept)| NetworkGrant { intercept: *intercept, ..entry.parse().unwrap() })
            .collect();
        Authority::new(&"a.1".parse().unwrap(), &grants).unwrap()
    }

    #[test]
    fn its_leaves_are_believed_for_their_name_only() {
        assert!(authority(&[("api.test", false)]).is_none());
        let own = authority(&[("api.test", true), ("*.cdn.test", true), ("other.test", false)]).unwrap();
        for name in ["api.test", "img.cdn.test"] {
            let server = own.server(&name.parse().unwrap()).unwrap();
            assert_eq!(shake(&own, server.clone(), name), Ok(()));
            assert!(shake(&own, server, "x.test").is_err());
        }
        for name in ["other.test", "x.api.test", "a.b.cdn.test"] {
            assert!(matches!(own.server(&name.parse().unwrap()), Err(AuthorityError::Name(_))), "{name}");
        }
    }

    #[test]
    fn its_constraints_hold_against_its_own_signature() {
        let mut own = authority(&[("api.test", true)]).unwrap();
        own.patterns.push("bank.test".parse().unwrap());
        let server = own.server(&"bank.test".parse().unwrap()).unwrap();
        let refused = shake(&own, server, "bank.test").unwrap_err().to_string();
        assert!(refused.contains("NameConstraint"), "{refused}");
        assert!(!format!("{own:?}").contains("PRIVATE"));
    }
}
