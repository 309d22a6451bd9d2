//! Which tools a workspace's administrator allows.
//!
//! The invariant: what no rule names is denied; where several rules match, the most exact one decides, and
//! of equally exact ones the strictest.

use serde::{Deserialize, Serialize};

use crate::store::tool::Rule;

#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Allow,
    Ask,
    Deny,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Allow, Self::Ask, Self::Deny].into_iter().find(|level| level.as_str() == text)
    }
}

/// The level of `tool` in `workspace`. A stored level that cannot be read counts as a denial.
pub fn level(rules: &[Rule], workspace: &str, tool: &str) -> Level {
    rules
        .iter()
        .filter(|(owner, pattern, _)| owner == workspace && matches(pattern, tool))
        .map(|(_, pattern, level)| (wildcards(pattern), Level::parse(level).unwrap_or(Level::Deny)))
        .min_by(|(exactness, level), (other, other_level)| exactness.cmp(other).then(other_level.cmp(level)))
        .map_or(Level::Deny, |(_, level)| level)
}

/// `*` stands for one segment of a dotted name.
fn matches(pattern: &str, tool: &str) -> bool {
    let (mut pattern, mut tool) = (pattern.split('.'), tool.split('.'));
    loop {
        match (pattern.next(), tool.next()) {
            (None, None) => return true,
            (Some(expected), Some(segment)) if expected == "*" || expected == segment => {}
            _ => return false,
        }
    }
}

fn wildcards(pattern: &str) -> usize {
    pattern.split('.').filter(|segment| *segment == "*").count()
}

/// Is `pattern` the name of a tool that some registered kind can need, or a pattern over such names?
pub fn is_known(pattern: &str, registry: &crate::registry::Registry) -> bool {
    let fits = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._*-".contains(c))
    };
    fits(pattern)
        && registry.entries().iter().any(|entry| {
            let known: Vec<&str> = entry.spec.tool_pattern.split('.').collect();
            let asked: Vec<&str> = pattern.split('.').collect();
            known.len() == asked.len()
                && known
                    .iter()
                    .zip(&asked)
                    .all(|(known, asked)| *asked == "*" || known.starts_with('<') || known == asked)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(list: &[(&str, &str)]) -> Vec<Rule> {
        list.iter().map(|(tool, level)| ("acme".into(), (*tool).into(), (*level).into())).collect()
    }

    #[test]
    fn what_no_rule_names_is_denied() {
        assert_eq!(level(&[], "acme", "email.draft"), Level::Deny);
        assert_eq!(level(&rules(&[("email.draft", "allow")]), "globex", "email.draft"), Level::Deny);
        assert_eq!(level(&rules(&[("email.*", "allow")]), "acme", "email"), Level::Deny);
    }

    #[test]
    fn the_most_exact_rule_decides_and_of_equals_the_strictest() {
        let grid = rules(&[("crm.*.update", "allow"), ("crm.account.update", "deny"), ("*.*.update", "ask")]);
        assert_eq!(level(&grid, "acme", "crm.account.update"), Level::Deny);
        assert_eq!(level(&grid, "acme", "crm.contact.update"), Level::Allow);
        let tie = rules(&[("crm.*.update", "allow"), ("crm.account.*", "ask")]);
        assert_eq!(level(&tie, "acme", "crm.account.update"), Level::Ask);
    }

    #[test]
    fn a_level_that_cannot_be_read_denies() {
        assert_eq!(level(&rules(&[("email.draft", "yes")]), "acme", "email.draft"), Level::Deny);
    }
}
