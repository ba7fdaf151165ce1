//! Files whose change restarts or reloads a service.

use super::Decoder;
use crate::config::yaml::Node;
use crate::model::{Span, Watch, WatchAction};

/// How long it must be quiet after a change where nothing is said: an editor or a compiler writes
/// several files.
const DEBOUNCE: Span = Span::millis(500);
/// Most paths of one unit. More is a tree, which takes one.
const PATHS_MAX: usize = 256;

impl Decoder<'_, '_> {
    pub(super) fn watch(&mut self, node: &Node, can_reload: bool) -> Option<Watch> {
        let fields = self.fields("watch", node)?;
        let debounce = fields.get("debounce").and_then(|node| self.span("watch.debounce", node));
        let actions = [("restart", WatchAction::Restart), ("reload", WatchAction::Reload)];
        let action = fields
            .get("action")
            .and_then(|node| Some((node, self.choice("watch.action", node, &actions, &[])?)));
        if let Some((node, WatchAction::Reload)) = action
            && !can_reload
        {
            let message = "`watch.action: reload` needs `reload`, which says how";
            self.sink.error(node.at, message);
        }
        let Some(list) = fields.get("paths") else {
            self.sink.error(node.at, "`watch` needs `paths`");
            return None;
        };
        let items = self.list("watch.paths", list)?;
        if items.is_empty() || items.len() > PATHS_MAX {
            let message = format!("`watch.paths` must have 1 to {PATHS_MAX} paths");
            self.sink.error(list.at, message);
        }
        let paths = items.iter().take(PATHS_MAX);
        let paths: Vec<_> = paths.filter_map(|item| self.path("watch.paths", item)).collect();
        Some(Watch {
            paths,
            debounce: debounce.unwrap_or(DEBOUNCE),
            action: action.map_or(WatchAction::Restart, |(_, action)| action),
        })
    }
}
