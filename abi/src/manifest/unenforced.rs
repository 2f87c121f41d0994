//! Fields of the format that nothing on the node enforces yet.

use super::{Checked, Checker, RawManifest};

impl Checker<'_> {
    /// A field that nothing enforces yet would be a promise nobody keeps.
    pub(super) fn refuse_unenforced(&self, raw: &RawManifest) -> Checked<()> {
        let fields = [(
            "tools",
            &raw.tools,
            "the verifier on the host, which decides tool calls by their risk and which this version does not have",
            "remove it; capabilities.exec bounds what the agent can run",
        )];
        for (field, value, keeper, remedy) in fields {
            if let Some(value) = value {
                let rule = format!(
                    "this version of NullBox does not enforce this field, so it refuses it: its place is {keeper}"
                );
                return self.wrong(value.span(), field, rule, remedy);
            }
        }
        Ok(())
    }
}
