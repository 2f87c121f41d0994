//! What is recorded of a call, on every way it can end.
//!
//! Must hold: a call that has a receipt has one end in the ledger, and what it reserved is settled by what its host reported, or stays
//! spent.

use abi::control::{ConnectionRecord, Spent};
use abi::ledger::Event;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

use super::Session;
use super::call::Fault;
use super::spending::Spending;
use crate::agent::unix_ms_now;
use crate::open::Cut;
use crate::splice::End;

/// Characters of a path in a receipt.
const PATH_CHARS_MAX: usize = 400;

/// A call with a receipt. Dropped, it has ended as its connection did.
#[derive(Debug)]
pub struct Record {
    session: Arc<Session>,
    receipt: u64,
    address: IpAddr,
    begun: Instant,
    /// Bytes of the connection before it.
    before: [u64; 2],
    pub status: Option<StatusCode>,
    /// None: the call is over.
    spending: Option<Spending>,
}

/// Receipts of one call, one for each address that is tried for it.
#[derive(Debug)]
pub struct Attempts<'a> {
    parts: &'a Parts,
    model: Option<String>,
    reserved: Spent,
    open: Arc<Open>,
}

/// Receipts that there are. What is not won by the time the last owner drops this came to nothing, and is recorded as that: a thread that
/// waits for a receipt owns it too, so one that comes after the call has gone has an end as well.
#[derive(Debug)]
struct Open {
    session: Arc<Session>,
    receipts: Mutex<Vec<(IpAddr, u64, Instant)>>,
}

impl<'a> Attempts<'a> {
    /// None yet.
    pub fn new(session: &Arc<Session>, parts: &'a Parts, spending: &Spending) -> Attempts<'a> {
        let open = Arc::new(Open { session: session.clone(), receipts: Mutex::default() });
        Attempts { parts, model: spending.model(), reserved: spending.reserved(), open }
    }

    /// Waits for a receipt; its place in the ledger.
    pub async fn receipt(&self, address: IpAddr) -> Result<u64, String> {
        let Session { agent, admission, .. } = &*self.open.session;
        let event = Event::BrokerCalled {
            instance: agent.instance.clone(),
            name: admission.name.clone(),
            port: admission.port,
            address: address.to_string(),
            secret: admission.secret.as_ref().map(|secret| secret.name.clone()),
            method: self.parts.method.to_string(),
            path: self.parts.uri.path().chars().take(PATH_CHARS_MAX).collect(),
            model: self.model.clone(),
            reserved: self.reserved,
            rule: admission.rule.clone(),
        };
        let (receipts, open) = (agent.node.receipts.clone(), self.open.clone());
        let durable = move || {
            let receipt = receipts.durable(event).map_err(|error| error.to_string())?.seq;
            open.receipts().push((address, receipt, Instant::now()));
            Ok::<_, String>(receipt)
        };
        agent.receipt_by(durable).await.map_err(|error| format!("no receipt, so no call: {error}"))
    }

    /// The call goes on by this one.
    pub fn win(self, address: IpAddr, receipt: u64, spending: Spending) -> Record {
        self.open.receipts().retain(|(_, other, _)| *other != receipt);
        self.open.record(address, receipt, Instant::now(), Some(spending))
    }
}

impl Open {
    fn receipts(&self) -> MutexGuard<'_, Vec<(IpAddr, u64, Instant)>> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, address: IpAddr, receipt: u64, begun: Instant, spending: Option<Spending>) -> Record {
        let session = self.session.clone();
        let before = session.bytes();
        Record { session, receipt, address, begun, before, status: None, spending }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let lost = std::mem::take(&mut *self.receipts());
        for (address, receipt, begun) in lost {
            self.record(address, receipt, begun, None).note("failed", true, Spent::default());
        }
    }
}

impl Record {
    /// The host's name.
    pub fn host(&self) -> String {
        self.session.admission.name.to_string()
    }

    /// The answer's head is there.
    pub fn answered(&mut self, status: StatusCode, content_type: Option<&HeaderValue>) {
        if let Some(spending) = &mut self.spending {
            spending.answered(status.as_u16(), content_type.and_then(|kind| kind.to_str().ok()));
        }
    }

    /// Bytes of the answer, before the guest gets them.
    pub fn observe(&mut self, bytes: &Bytes) -> Result<(), End> {
        let Some(Err(over)) = self.spending.as_mut().map(|spending| spending.push(bytes)) else {
            return Ok(());
        };
        let what = format!("{}: {over}", self.host());
        self.session.agent.deny(
            &what,
            "budget",
            "ask for less in one call, or raise the budget in the manifest",
        );
        Err(End::Cut(Cut::Budget))
    }

    /// Whether the call is over.
    pub fn is_over(&self) -> bool {
        self.spending.is_none()
    }

    /// The whole answer was there.
    pub fn whole(&mut self) {
        if let Some(spending) = self.spending.take() {
            let (usage_known, used) = spending.settle(true);
            self.note("closed", usage_known, used);
        }
    }

    /// The guest's connection ends for this reason, and the call with it.
    pub fn stop(&mut self, end: End) {
        self.end(end.word());
        self.session.stop(end);
    }

    /// The request is about to leave.
    pub fn leaves(&mut self) {
        if let Some(spending) = &mut self.spending {
            spending.leaves(true);
        }
    }

    /// Nothing of the request left: what was reserved may be used for another way.
    pub fn unsent(mut self) -> Result<Spending, Fault> {
        let mut spending = self.spending.take().ok_or(Fault::Ends(End::Closed))?; // it had none if it was over
        spending.leaves(false);
        self.note("failed", true, Spent::default());
        Ok(spending)
    }

    /// The call ends in the middle.
    pub fn end(&mut self, word: &str) {
        if let Some(spending) = self.spending.take() {
            let (usage_known, used) = spending.settle(false);
            let word = self.session.pulse.is_cut().map_or(word, |cut| End::Cut(cut).word());
            self.note(word, usage_known, used);
        }
    }

    fn note(&self, word: &str, usage_known: bool, used: Spent) {
        let Session { agent, admission, .. } = &*self.session;
        let [out, inward] = self.session.bytes();
        let [out_before, in_before] = self.before;
        agent.node.receipts.record(Event::BrokerSettled {
            instance: agent.instance.clone(),
            receipt: self.receipt,
            status: self.status.map(|status| status.as_u16()),
            usage_known,
            used,
        });
        agent.node.ended(ConnectionRecord {
            unix_ms: unix_ms_now(),
            instance: agent.instance.clone(),
            name: admission.name.clone(),
            port: admission.port,
            address: self.address.to_string(),
            bytes_out: out.saturating_sub(out_before),
            bytes_in: inward.saturating_sub(in_before),
            duration_ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            rule: admission.rule.clone(),
            end: word.to_owned(),
            receipt: self.receipt,
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let word = self.session.end_word();
        self.end(word);
    }
}
