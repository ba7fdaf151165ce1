//! Three drawings of how units hang together: a tree for people, and the languages of graphviz and
//! mermaid. Each is a function of a [`Picture`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::model::{Condition, DEFAULT_TARGET, Gather, InstanceId, Kind, Strength, UnitName};

/// Deepest branch of the tree. What hangs below it is a tree of its own further down: the lines of a
/// chain of a thousand units would be wider than any terminal.
const BRANCH_MAX: usize = 16;

/// Units and what is between them.
#[derive(Debug, Default)]
pub(super) struct Picture {
    /// Every unit.
    pub(super) units: BTreeMap<UnitName, Shown>,
    /// What each is ordered after.
    pub(super) ties: BTreeMap<UnitName, Vec<Tie>>,
    /// Pairs of which only one may be up, the first by name first.
    pub(super) conflicts: BTreeSet<(UnitName, UnitName)>,
}

/// What is drawn of a unit.
#[derive(Debug)]
pub(super) struct Shown {
    /// What it is; `None` where others name it and nobody declares it.
    pub(super) kind: Option<Kind>,
    /// Whether anything brings it up.
    pub(super) is_wanted: bool,
    /// Whether it is enabled, or was started by hand.
    pub(super) is_enabled: bool,
    /// Who holds it down.
    pub(super) held_by: Option<String>,
    /// In which stage of a boot it starts, from 1.
    pub(super) stage: u32,
    /// How many instances it has.
    pub(super) instances: usize,
    /// Where each instance is; empty where there is no daemon.
    pub(super) phases: BTreeMap<InstanceId, &'static str>,
}

/// One edge, seen from the unit that has it.
#[derive(Debug)]
pub(super) struct Tie {
    /// How strongly.
    pub(super) how: How,
    /// To which unit.
    pub(super) to: UnitName,
    /// How far that one must have come.
    pub(super) condition: Condition,
}

/// The kind of an edge, the strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum How {
    Requires,
    Wants,
    After,
    Conflicts,
}

impl From<Strength> for How {
    fn from(strength: Strength) -> Self {
        match strength {
            Strength::Requires => Self::Requires,
            Strength::Wants => Self::Wants,
            Strength::After => Self::After,
        }
    }
}

impl How {
    /// The key that declares it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Requires => "requires",
            Self::Wants => "wants",
            Self::After => "after",
            Self::Conflicts => "conflicts",
        }
    }
}

impl Shown {
    /// A unit that others name and nobody declares.
    pub(super) fn missing() -> Self {
        Self {
            kind: None,
            is_wanted: false,
            is_enabled: true,
            held_by: None,
            stage: 1,
            instances: 0,
            phases: BTreeMap::new(),
        }
    }

    /// What is worth a word beside its name.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        match self.kind {
            None => return vec!["not declared".to_owned()],
            Some(Kind::Service) => {}
            Some(kind @ (Kind::Task | Kind::Socket | Kind::Target)) => {
                notes.push(kind.as_str().to_owned());
            }
        }
        if self.instances > 1 {
            notes.push(format!("{} instances", self.instances));
        }
        if let Some(by) = &self.held_by {
            notes.push(format!("held by {by}"));
        } else if !self.is_enabled {
            notes.push("not enabled".to_owned());
        } else if !self.is_wanted {
            notes.push("not wanted".to_owned());
        }
        notes
    }

    /// Its phase; of several instances how many are in which.
    fn phase(&self) -> String {
        if self.phases.len() < 2 {
            return self.phases.values().next().map_or_else(String::new, |phase| (*phase).into());
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for phase in self.phases.values() {
            let count = counts.entry(phase).or_default();
            *count = count.saturating_add(1);
        }
        let counts: Vec<String> =
            counts.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
        counts.join(", ")
    }

    /// The class of its worst instance; `None` where there is no daemon.
    fn class(&self) -> Option<&'static str> {
        let rank = |phase: &str| match phase {
            "failed" | "unproven" | "backoff" => 3,
            "waiting" | "starting" | "stopping" => 2,
            "down" | "skipped" => 1,
            _ => 0,
        };
        let worst = self.phases.values().map(|phase| rank(phase)).max()?;
        CLASSES.get(worst).map(|(class, _)| *class)
    }
}

/// Classes of phases, the best first, with their colours.
const CLASSES: [(&str, &str); 4] =
    [("good", "#b7e1b0"), ("idle", "#dddddd"), ("moving", "#fff2b3"), ("bad", "#f4b3b3")];

impl Picture {
    /// Leaves out all other units, and what hangs on them.
    pub(super) fn keep(&mut self, units: &BTreeSet<UnitName>) {
        self.units.retain(|name, _| units.contains(name));
        self.ties.retain(|name, _| units.contains(name));
        for ties in self.ties.values_mut() {
            ties.retain(|tie| units.contains(&tie.to));
        }
        self.conflicts.retain(|(a, b)| units.contains(a) && units.contains(b));
    }

    fn ties_of(&self, unit: &UnitName) -> &[Tie] {
        self.ties.get(unit).map_or(&[], Vec::as_slice)
    }

    /// Who may not be up together with this one.
    fn rivals<'a>(&'a self, unit: &'a UnitName) -> impl Iterator<Item = &'a UnitName> {
        self.conflicts.iter().filter_map(move |(a, b)| match (a == unit, b == unit) {
            (true, _) => Some(b),
            (_, true) => Some(a),
            (false, false) => None,
        })
    }

    /// The units at which trees begin: those that nobody waits for, the default target first.
    fn roots(&self) -> Vec<&UnitName> {
        let needed: BTreeSet<&UnitName> = self.ties.values().flatten().map(|tie| &tie.to).gather();
        let mut roots: Vec<&UnitName> =
            self.units.keys().filter(|name| !needed.contains(name)).collect();
        roots.sort_by_key(|name| {
            let is_wanted = self.units.get(*name).is_some_and(|shown| shown.is_wanted);
            (name.as_str() != DEFAULT_TARGET, !is_wanted)
        });
        roots
    }
}

/// A tree from what nobody waits for down to what it waits for, then the stages of a boot.
pub(super) fn text(picture: &Picture) -> String {
    let mut tree =
        Tree { picture, text: String::new(), done: BTreeSet::new(), later: VecDeque::new() };
    tree.later.extend(picture.roots());
    tree.draw();
    // Whatever is in no tree is in a loop, which no source can declare alone.
    tree.later.extend(picture.units.keys());
    tree.draw();
    let mut text = tree.text;
    stages(picture, &mut text);
    text
}

struct Tree<'a> {
    picture: &'a Picture,
    text: String,
    /// What was drawn with all that is below it.
    done: BTreeSet<&'a UnitName>,
    /// What begins a tree of its own.
    later: VecDeque<&'a UnitName>,
}

/// A line that is to be drawn.
struct Line<'a> {
    /// What stands before it: the branches that go on beside it.
    before: String,
    /// The branch to it and the one that its own lines have before them.
    branch: Option<(&'static str, &'static str)>,
    words: String,
    unit: &'a UnitName,
    depth: usize,
    is_leaf: bool,
}

impl<'a> Tree<'a> {
    fn draw(&mut self) {
        while let Some(root) = self.later.pop_front() {
            if self.done.contains(root) {
                continue;
            }
            let line = Line {
                before: String::new(),
                branch: None,
                words: String::new(),
                unit: root,
                depth: 0,
                is_leaf: false,
            };
            let mut open = vec![line];
            while let Some(line) = open.pop() {
                let below = self.line(&line);
                open.extend(below.into_iter().rev());
            }
        }
    }

    /// Draws a line; returns those below it.
    fn line(&mut self, line: &Line<'a>) -> Vec<Line<'a>> {
        let ties = self.picture.ties_of(line.unit);
        let (branch, go_on) = line.branch.unwrap_or_default();
        let known = self.picture.units.get(line.unit);
        let mut words = format!("{}{}", line.words, line.unit);
        let notes = known.map(Shown::notes).unwrap_or_default();
        if !notes.is_empty() {
            add(&mut words, &format!(" ({})", notes.join(", ")));
        }
        let phase = known.map(Shown::phase).unwrap_or_default();
        if !phase.is_empty() {
            add(&mut words, &format!(": {phase}"));
        }
        let has_more = !ties.is_empty() && !line.is_leaf;
        let is_drawn = has_more && self.done.contains(line.unit);
        let is_deep = has_more && !is_drawn && line.depth >= BRANCH_MAX;
        if is_drawn {
            words.push_str(", see above");
        } else if is_deep {
            words.push_str(", see below");
            self.later.push_back(line.unit);
        }
        add(&mut self.text, &format!("{}{branch}{words}\n", line.before));
        if line.is_leaf || is_drawn || is_deep {
            return Vec::new();
        }
        self.done.insert(line.unit);
        let before = format!("{}{go_on}", line.before);
        self.below(line.unit, &before, line.depth.saturating_add(1))
    }

    fn below(&self, unit: &'a UnitName, before: &str, depth: usize) -> Vec<Line<'a>> {
        let needs = self.picture.ties_of(unit).iter().map(|tie| {
            let words = match tie.condition {
                Condition::Ready => format!("{} ", tie.how.as_str()),
                Condition::Started | Condition::Completed => {
                    format!("{} {}: ", tie.how.as_str(), tie.condition.as_str())
                }
            };
            (words, &tie.to, false)
        });
        let rivals = self.picture.rivals(unit);
        let all: Vec<_> =
            needs.chain(rivals.map(|other| ("conflicts with ".to_owned(), other, true))).collect();
        let last = all.len().saturating_sub(1);
        let line = |(place, (words, unit, is_leaf))| Line {
            before: before.to_owned(),
            branch: Some(if place == last { ("└─ ", "   ") } else { ("├─ ", "│  ") }),
            words,
            unit,
            depth,
            is_leaf,
        };
        all.into_iter().enumerate().map(line).collect()
    }
}

/// The order of a boot, one line for each stage, and who has no part in it.
fn stages(picture: &Picture, text: &mut String) {
    let mut stages: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    let mut idle = Vec::new();
    for (name, shown) in &picture.units {
        if shown.is_wanted && shown.held_by.is_none() {
            stages.entry(shown.stage).or_default().push(name.as_str());
        } else if shown.kind.is_some() {
            idle.push(name.as_str());
        }
    }
    if !stages.is_empty() {
        text.push_str("\nStages of a start; a stop goes the other way:\n");
    }
    for (stage, names) in stages {
        add(text, &format!("{stage:>3}  {}\n", names.join(", ")));
    }
    if !idle.is_empty() {
        add(text, &format!("\nNot started: {}\n", idle.join(", ")));
    }
}

fn add(text: &mut String, words: &str) {
    text.push_str(words);
}

/// The language of graphviz.
pub(super) fn dot(picture: &Picture) -> String {
    let mut text = "digraph opm {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
    for (name, shown) in &picture.units {
        let mut label = name.to_string();
        let notes = shown.notes();
        for more in [notes.join(", "), shown.phase()].iter().filter(|more| !more.is_empty()) {
            label.push('\n');
            label.push_str(more);
        }
        let mut looks = format!("label={}", quoted(&label));
        match shown.kind {
            Some(Kind::Service) => {}
            Some(Kind::Task) => looks.push_str(", shape=ellipse"),
            Some(Kind::Socket) => looks.push_str(", shape=cds"),
            Some(Kind::Target) => looks.push_str(", shape=hexagon"),
            None => looks.push_str(", style=dashed"),
        }
        if let Some((_, colour)) = CLASSES.iter().find(|(class, _)| Some(*class) == shown.class()) {
            add(&mut looks, &format!(", style=filled, fillcolor={}", quoted(colour)));
        }
        add(&mut text, &format!("  {} [{looks}];\n", quoted(name.as_str())));
    }
    for (from, ties) in &picture.ties {
        for tie in ties {
            let style = match tie.how {
                How::Requires => "solid",
                How::Wants => "dashed",
                How::After | How::Conflicts => "dotted",
            };
            let label = label(tie);
            let (from, to) = (quoted(from.as_str()), quoted(tie.to.as_str()));
            let label = quoted(&label);
            add(&mut text, &format!("  {from} -> {to} [style={style}, label={label}];\n"));
        }
    }
    for (a, b) in &picture.conflicts {
        let (a, b) = (quoted(a.as_str()), quoted(b.as_str()));
        add(
            &mut text,
            &format!(
                "  {a} -> {b} [dir=none, color=red, constraint=false, label=\"conflicts\"];\n"
            ),
        );
    }
    text.push_str("}\n");
    text
}

/// What stands at an edge.
fn label(tie: &Tie) -> String {
    match tie.condition {
        Condition::Ready => tie.how.as_str().to_owned(),
        Condition::Started | Condition::Completed => {
            format!("{} {}", tie.how.as_str(), tie.condition.as_str())
        }
    }
}

/// A string of graphviz: only the quote and the backslash mean something in it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The language of mermaid.
pub(super) fn mermaid(picture: &Picture) -> String {
    let mut text = "flowchart LR\n".to_owned();
    for (name, shown) in &picture.units {
        let mut words = name.to_string();
        let notes = shown.notes();
        for more in [notes.join(", "), shown.phase()].iter().filter(|more| !more.is_empty()) {
            words.push_str("<br>");
            words.push_str(&more.replace('"', "#quot;").replace('<', "#lt;"));
        }
        let (open, close) = match shown.kind {
            Some(Kind::Service) | None => ("[", "]"),
            Some(Kind::Task) => ("([", "])"),
            Some(Kind::Socket) => (">", "]"),
            Some(Kind::Target) => ("{{", "}}"),
        };
        let class = shown.class().map(|class| format!(":::{class}")).unwrap_or_default();
        add(&mut text, &format!("  {}{open}\"{words}\"{close}{class}\n", id(name)));
    }
    for (from, ties) in &picture.ties {
        for tie in ties {
            let arrow = match tie.how {
                How::Requires => "-->",
                How::Wants | How::After | How::Conflicts => "-.->",
            };
            add(&mut text, &format!("  {} {arrow}|{}| {}\n", id(from), label(tie), id(&tie.to)));
        }
    }
    for (a, b) in &picture.conflicts {
        add(&mut text, &format!("  {} x--x|conflicts| {}\n", id(a), id(b)));
    }
    if picture.units.values().any(|shown| shown.class().is_some()) {
        for (class, colour) in CLASSES {
            add(&mut text, &format!("  classDef {class} fill:{colour},color:#000\n"));
        }
    }
    text
}

/// A name that means nothing in mermaid, as `end` would, and that no other unit has.
fn id(unit: &UnitName) -> String {
    let mut id = String::from("u_");
    for c in unit.as_str().chars() {
        if c.is_ascii_alphanumeric() {
            id.push(c);
        } else {
            add(&mut id, &format!("_{:02x}", u32::from(c)));
        }
    }
    id
}

#[cfg(test)]
#[path = "draw_tests.rs"]
mod tests;
