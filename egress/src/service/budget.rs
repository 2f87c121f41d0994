//! `net.budget`, `net.reset_budget`, and the seconds of a running agent.

use abi::control::{AgentBudget, Budgets, NetAgent, NetResetBudget};
use abi::door::{Call, Outcome};
use abi::ledger::Event;
use abi::rpc::{Code, RpcError};
use abi::{limits, log};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Egress, to_value};
use crate::agent::Agent;
use crate::open::Cut;
use crate::page;

impl Egress {
    pub(super) fn budgets(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let NetAgent { agent } = call.request.params()?;
        Ok(Outcome::Result(to_value(&in_a_line(self.node.meters.list(agent.as_ref())))?))
    }

    pub(super) fn reset_budget(&self, call: &Call<'_>) -> Result<Outcome, RpcError> {
        let NetResetBudget { agent } = call.request.params()?;
        let meter = self.node.meters.known(&agent).ok_or_else(|| {
            RpcError::new(Code::NOT_FOUND, format!("agent {agent} has spent nothing"))
                .explained("a budget is kept from an agent's first network on", "see nullctl net budget")
        })?;
        self.receipt(Event::BudgetReset { agent: agent.clone(), by: call.caller.to_string() })?;
        meter.reset().map_err(|error| {
            RpcError::new(Code::FAILED, format!("what was spent cannot be written: {error}"))
                .explained("a reset is on the disk before it is answered", "see nullctl system doctor")
        })?;
        log::info("budget_reset", &[("agent", &agent), ("by", &call.caller)]);
        let now = to_value(&Budgets { agents: self.node.meters.list(Some(&agent)), left_out: 0 })?;
        Ok(Outcome::Result(now))
    }
}

fn in_a_line(list: Vec<AgentBudget>) -> Budgets {
    let (agents, left_out) = page::first_that_fit(list, &mut { page::BYTES_MAX });
    Budgets { agents, left_out }
}

/// Counts an agent's seconds and writes its meter, for ever; cuts its connections when no second is left.
pub(super) async fn spend(agent: &Arc<Agent>) {
    let (begun, mut counted) = (Instant::now(), 0);
    let mut written = Instant::now();
    let mut over = false;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let secs = begun.elapsed().as_secs();
        let refused = agent.meter.tick(secs - counted).err();
        counted = secs;
        if let Some(exhausted) = &refused
            && !over
        {
            agent.deny(&exhausted.what(), "budget", &exhausted.remedy());
            agent.cut_all(Cut::Budget);
        }
        over = refused.is_some();
        if written.elapsed() >= Duration::from_millis(limits::METERS_WRITTEN_MS) {
            written = Instant::now();
            let meter = agent.meter.clone();
            match tokio::task::spawn_blocking(move || meter.write()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    log::error("meter_unwritten", &[("agent", &agent.instance), ("error", &error)])
                }
                Err(error) => log::error("meter_unwritten", &[("agent", &agent.instance), ("error", &error)]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::control::Spent;
    use abi::network::Budget;

    #[test]
    fn a_page_of_budgets_fits_a_line_with_all_running_agents() {
        let most = Spent {
            input_tokens: u64::MAX,
            cache_tokens: u64::MAX,
            output_tokens: u64::MAX,
            micro_dollars: u64::MAX,
            calls_this_hour: u64::MAX,
            bytes: u64::MAX,
            wall_secs: u64::MAX,
        };
        let one = AgentBudget {
            agent: "a".repeat(32).parse().unwrap(),
            budget: Some(Budget { bytes_max: Some(u64::MAX), ..Budget::default() }),
            used: most,
            reserved: most,
            period_ends_unix_ms: Some(u64::MAX),
            hour_ends_unix_ms: Some(u64::MAX),
            damaged: None,
        };
        let page = in_a_line(vec![one; 500]);
        assert!((limits::AGENTS_RUNNING_MAX..500).contains(&page.agents.len()), "{}", page.left_out);
        assert_eq!(page.agents.len() as u64 + page.left_out, 500);
        assert!(serde_json::to_string(&page).unwrap().len() + 512 < limits::LINE_BYTES_MAX);
    }
}
