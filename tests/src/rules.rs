//! The filters of a VMM's threads against what the threads of a living one call: rules that nothing uses are dead.
//!
//! Must hold: a rule is named unless a life used it or the table says that an ordinary life does not.

use std::fmt;

use cage::jail::calls::{ANY, ROLES, Role, Row, Use, WORK, rows};
use seccomp::When;
use seccomp::names::name;

/// A call that a thread made, with those arguments that a filter looks at; the others are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Made {
    pub role: Role,
    pub call: i64,
    pub args: [u64; 6],
}

impl Made {
    /// Leaves out the arguments that no filter looks at, so that equal calls are equal.
    pub fn of(role: Role, call: i64, args: [u64; 6]) -> Made {
        let mut kept = [0; 6];
        for (_, _, (_, when, _)) in rows().filter(|(_, _, (known, _, _))| *known == call) {
            let parts: &[(u8, u64, u64)] = match when {
                When::Always => &[],
                When::OneOf(index, _) | When::Masked(index, _, _) => &[(*index, 0, 0)],
                When::All(parts) => parts,
            };
            for (index, _, _) in parts {
                kept[usize::from(*index)] = args[usize::from(*index)];
            }
        }
        Made { role, call, args: kept }
    }

    /// Of what [`fmt::Display`] wrote.
    pub fn parse(line: &str) -> Option<Made> {
        let mut words = line.split(' ');
        let word = words.next()?;
        let role = ROLES.into_iter().find(|role| format!("{role:?}") == word)?;
        let call = words.next()?.parse().ok()?;
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = words.next()?.parse().ok()?;
        }
        Some(Made { role, call, args })
    }

    fn by(&self, roles: &[Role], (call, when, _): &seccomp::Line) -> bool {
        roles.contains(&self.role) && self.call == *call && when.admits(&self.args)
    }
}

impl fmt::Display for Made {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} {}", self.role, self.call)?;
        self.args.iter().try_for_each(|arg| write!(out, " {arg}"))
    }
}

/// What is wrong with a table, given all that the threads called in ordinary lives: dead rules, rules that say they are seldom used
/// and are not, and calls that were made by a role that has no row for them.
pub fn judge<'a>(table: impl IntoIterator<Item = &'a Row>, made: &[Made]) -> Vec<String> {
    let table: Vec<&Row> = table.into_iter().collect();
    let mut wrong = Vec::new();
    for (roles, life, line) in &table {
        // The roles of these two share their rows. Each other role, and each value of a list, is a rule of its own.
        let groups: Vec<&[Role]> =
            if *roles == ANY || *roles == WORK { vec![*roles] } else { roles.chunks(1).collect() };
        let (call, when, reason) = line;
        let values = match *when {
            When::OneOf(index, values) => values.iter().map(|value| Some((index, *value))).collect(),
            _ => vec![None],
        };
        for (roles, value) in groups.iter().flat_map(|roles| values.iter().map(move |value| (roles, value))) {
            let has = |made: &Made| {
                value.is_none_or(|(index, value)| made.args[usize::from(index)] & 0xFFFF_FFFF == value)
            };
            let is_used = made.iter().any(|made| made.by(roles, line) && has(made));
            let value = value.map(|(_, value)| format!(" {value:#x}")).unwrap_or_default();
            let rule = format!("{}{value} of {roles:?} ({reason})", name(*call));
            match life {
                Use::Ordinary if !is_used => wrong.push(format!("dead: {rule}")),
                Use::Only(when) if is_used => wrong.push(format!("not only when {when}: {rule}")),
                _ => {}
            }
        }
    }
    for made in made {
        if !table.iter().any(|(roles, _, line)| made.by(roles, line)) {
            wrong.push(format!("no row: {} {:x?} of {:?}", name(made.call), made.args, made.role));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use cage::jail::calls::Role::{Block, Net, Vcpu};

    const READ: Row = (&[Vcpu, Block], Use::Ordinary, (0, When::Always, "all read"));
    const CONTROL: Row = (&[Vcpu], Use::Ordinary, (16, When::OneOf(1, &[7, 9]), "two requests"));
    const END: Row = (ANY, Use::Only("it ends"), (60, When::Always, "end"));
    const YIELD: Row = (ANY, Use::ByChance, (24, When::Always, "locks"));
    const TABLE: [Row; 4] = [READ, CONTROL, END, YIELD];

    fn life() -> Vec<Made> {
        let made = |role, call, arg| Made { role, call, args: [0, arg, 0, 0, 0, 0] };
        // Filters look at 32 bits of a request; libc may have extended its sign.
        vec![made(Vcpu, 0, 0), made(Block, 0, 0), made(Vcpu, 16, 7), made(Vcpu, 16, 0xFFFF_FFFF_0000_0009)]
    }

    #[test]
    fn a_table_that_a_life_uses_is_sound() {
        assert_eq!(judge(&TABLE, &life()), Vec::<String>::new());
    }

    #[test]
    fn a_rule_that_nobody_uses_is_found_dead() {
        let added: Row = (&[Net], Use::Ordinary, (101, When::Always, "added on purpose"));
        let wrong = judge(TABLE.iter().chain([&added]), &life());
        assert_eq!(wrong, ["dead: ptrace of [Net] (added on purpose)"]);
    }

    #[test]
    fn a_role_or_a_value_that_nobody_uses_is_found_dead() {
        let without = |out: usize| {
            let mut life = life();
            life.remove(out);
            judge(&TABLE, &life)
        };
        assert_eq!(without(1), ["dead: read of [Block] (all read)"]);
        assert_eq!(without(3), ["dead: ioctl 0x9 of [Vcpu] (two requests)"]);
    }

    #[test]
    fn a_rule_for_rare_lives_that_an_ordinary_one_uses_is_named() {
        let mut life = life();
        life.push(Made { role: Net, call: 60, args: [0; 6] });
        life.push(Made { role: Net, call: 24, args: [0; 6] });
        assert_eq!(judge(&TABLE, &life).len(), 1);
        assert!(judge(&TABLE, &life)[0].starts_with("not only when it ends: exit"));
    }

    #[test]
    fn a_call_without_a_row_for_its_role_is_named() {
        let mut life = life();
        life.push(Made { role: Net, call: 0, args: [0; 6] });
        assert_eq!(judge(&TABLE, &life), ["no row: read [0, 0, 0, 0, 0, 0] of Net"]);
    }

    #[test]
    fn calls_round_trip_with_the_arguments_that_filters_look_at() {
        let args = [1, 0xAE80, 3, 4, 5, 6];
        let ioctl = Made::of(Vcpu, libc::SYS_ioctl, args);
        assert_eq!(ioctl.args, [0, 0xAE80, 0, 0, 0, 0]);
        assert_eq!(Made::of(Vcpu, libc::SYS_read, args).args, [0; 6]);
        assert_eq!(Made::parse(&ioctl.to_string()), Some(ioctl));
        assert_eq!(Made::parse("Nobody 1 0 0 0 0 0 0"), None);
    }
}
