//! Who is accepted in a handshake: TLS 1.3, raw public keys (RFC 7250), ed25519, both sides proved.
//!
//! Must hold: a server admits only listed keys, a client only the pinned one; each configuration serves one connection, so
//! that what was offered can be told afterwards. Must never: resume a session or accept early data.

use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, ServerConnection, SignatureScheme,
};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::keys::{Fingerprint, PrivateKey, PublicKey};

/// The key a peer offered, seen before it was accepted or refused.
#[derive(Debug, Default, Clone)]
pub struct Offered(Arc<Mutex<Option<PublicKey>>>);

impl Offered {
    /// The key, or none when the handshake did not come that far. Without acceptance nothing proves that the peer owns it.
    pub fn key(&self) -> Option<PublicKey> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, key: PublicKey) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }
}

/// Accepts the keys a rule admits; the rest of the handshake is the same for both sides.
struct Rule<F> {
    admits: F,
    offered: Offered,
    algorithms: WebPkiSupportedAlgorithms,
}

impl<F> std::fmt::Debug for Rule<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rule")
    }
}

impl<F: Fn(&PublicKey) -> bool> Rule<F> {
    fn new(admits: F, offered: &Offered) -> Arc<Rule<F>> {
        Arc::new(Rule {
            admits,
            offered: offered.clone(),
            algorithms: ring::default_provider().signature_verification_algorithms,
        })
    }

    fn decide(&self, spki: &CertificateDer<'_>) -> Result<(), Error> {
        let key =
            PublicKey::from_spki(spki).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        self.offered.set(key);
        if (self.admits)(&key) {
            Ok(())
        } else {
            // Goes out as the alert access_denied.
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }
}

const TLS12_REFUSED: Error = Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered);

impl<F: Fn(&PublicKey) -> bool + Send + Sync> ClientCertVerifier for Rule<F> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.decide(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(TLS12_REFUSED)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl<F: Fn(&PublicKey) -> bool + Send + Sync> ServerCertVerifier for Rule<F> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.decide(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(TLS12_REFUSED)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The server side of one connection, which admits the keys that `admits` admits.
pub fn server(
    key: &PrivateKey,
    admits: impl Fn(&PublicKey) -> bool + Send + Sync + 'static,
) -> Result<(ServerConnection, Offered), Error> {
    let offered = Offered::default();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Rule::new(admits, &offered))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key.certified())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok((ServerConnection::new(Arc::new(config))?, offered))
}

/// The client side of one connection, which admits the pinned server only; without a pin it admits none, and
/// [`Offered`] tells which one was there.
pub fn client(key: &PrivateKey, pin: Option<Fingerprint>) -> Result<(ClientConnection, Offered), Error> {
    let offered = Offered::default();
    let admits = move |key: &PublicKey| pin == Some(key.fingerprint());
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // rustls's word for "we check the server ourselves": by pinned key, in `Rule`
        .with_custom_certificate_verifier(Rule::new(admits, &offered))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key.certified())));
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    // Required by the interface and used for nothing: there is no name in a raw public key.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    Ok((ClientConnection::new(Arc::new(config), name)?, offered))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
