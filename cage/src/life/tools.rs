//! A life's desk, where its manifest gives its agent tools.

use std::sync::Arc;

use super::{End, Life, broken};
use crate::desk::house::Home;
use crate::desk::{Beginning, Desk, Pinned};
use crate::lease::Seen;

impl Life<'_> {
    /// What decides the calls of its tools, where its manifest gives it any.
    pub(super) fn desk(&self, seen: &Arc<Seen>) -> Result<Option<Arc<Desk>>, End> {
        let Some(authority) = &self.order.loaded.manifest.authority else { return Ok(None) };
        let rootfs = self.agent.facts().rootfs_digest.ok_or_else(|| broken("the rootfs has no digest"))?;
        let verifier =
            self.cage.verifier().map_err(|error| broken(format!("the guest's first program: {error}")))?;
        let (cage, agent, instance) = (self.cage.clone(), self.agent.clone(), self.instance().clone());
        let home = Home { cage, agent, instance, seen: seen.clone() };
        let desk = Desk::begin(Beginning {
            instance: self.instance(),
            authority,
            mandate: &self.order.mandate,
            pinned: Pinned { rootfs, verifier },
            questions: self.cage.questions.clone(),
            ctxgraph: &self.cage.places.ctxgraph,
            house: Arc::new(home),
        });
        let desk = desk.map_err(broken)?;
        self.agent.update(|facts| facts.desk = Some(desk.clone()));
        Ok(Some(desk))
    }
}
