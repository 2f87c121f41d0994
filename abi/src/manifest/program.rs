//! The part of a manifest that says what is run: the command and its environment.

use std::collections::BTreeMap;
use toml::Spanned;

use super::{Checked, Checker};
use crate::limits;

impl Checker<'_> {
    pub(super) fn command(&self, command: Spanned<Vec<Spanned<String>>>) -> Checked<Vec<String>> {
        self.program(command, "agent.command")
    }

    /// A program's absolute path with its arguments.
    pub(super) fn program(
        &self,
        command: Spanned<Vec<Spanned<String>>>,
        field: &str,
    ) -> Checked<Vec<String>> {
        let span = command.span();
        let args = command.into_inner();
        if args.is_empty() || args.len() > limits::COMMAND_ARGS_MAX {
            let rule = format!("must have 1 to {} parts", limits::COMMAND_ARGS_MAX);
            return self.wrong(
                span,
                field,
                rule,
                "write for example command = [\"/usr/bin/python3\", \"/app/main.py\"]",
            );
        }
        for (index, arg) in args.iter().enumerate() {
            let text = arg.get_ref();
            if text.len() > limits::COMMAND_ARG_BYTES_MAX || text.contains('\0') {
                let rule = format!("must be at most {} bytes, without NUL", limits::COMMAND_ARG_BYTES_MAX);
                return self.wrong(arg.span(), field, rule, "shorten it");
            }
            if index == 0 {
                self.path(arg, field, false)?;
            }
        }
        Ok(args.into_iter().map(Spanned::into_inner).collect())
    }

    pub(super) fn env(&self, env: BTreeMap<String, Spanned<String>>) -> Checked<BTreeMap<String, String>> {
        let mut checked = BTreeMap::new();
        let count = env.len();
        for (name, value) in env {
            let field = format!("agent.env.{name}");
            let mut bytes = name.bytes();
            let starts = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
            if !starts || name.len() > 128 || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                let rule = "a variable's name must be 1 to 128 of A-Z a-z 0-9 _, not starting with a digit";
                return self.wrong(value.span(), &field, rule, "rename it");
            }
            if count > limits::ENV_VARS_MAX {
                let rule = format!("{count} variables: at most {} are allowed", limits::ENV_VARS_MAX);
                return self.wrong(value.span(), "agent.env", rule, "remove some");
            }
            if value.get_ref().len() > limits::COMMAND_ARG_BYTES_MAX || value.get_ref().contains('\0') {
                let rule = format!("must be at most {} bytes, without NUL", limits::COMMAND_ARG_BYTES_MAX);
                return self.wrong(value.span(), &field, rule, "shorten it");
            }
            checked.insert(name, value.into_inner());
        }
        Ok(checked)
    }
}
