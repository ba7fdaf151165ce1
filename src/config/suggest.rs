//! The word that was probably meant.

use crate::model::Signal;

/// Farthest word that is suggested, in single edits; one for words of less than five letters.
const DISTANCE_MAX: usize = 2;

/// What other supervisors call a key, and what it is called here.
const OTHER_NAMES: [(&str, &str); 27] = [
    ("args", "command"),
    ("autorestart", "restart"),
    ("autostart", "enabled"),
    ("cmd", "command"),
    ("cwd", "working_dir"),
    ("depends_on", "requires"),
    ("dir", "working_dir"),
    ("directory", "working_dir"),
    ("entrypoint", "command"),
    ("env_file", "env_files"),
    ("environment", "env"),
    ("environment_file", "env_files"),
    ("exec", "command"),
    ("exec_start", "command"),
    ("exec_start_pre", "pre_start"),
    ("exec_start_post", "post_start"),
    ("exec_stop_post", "post_stop"),
    ("healthcheck", "health"),
    ("log", "logs"),
    ("logging", "logs"),
    ("needs", "requires"),
    ("numprocs", "instances"),
    ("replicas", "instances"),
    ("stop_grace_period", "stop"),
    ("type", "kind"),
    ("ulimits", "limits"),
    ("workdir", "working_dir"),
];

/// The one candidate that is nearest to the word, if it is near and no other is as near.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = plain(word);
    let most = if plain.chars().count() < 5 { 1 } else { DISTANCE_MAX };
    let mut best: Option<(usize, &str)> = None;
    let mut is_tied = false;
    for candidate in candidates {
        // The length alone tells of most words that they are too far.
        if candidate.len().abs_diff(word.len()) > most.saturating_add(4) {
            continue;
        }
        let distance = strsim::osa_distance(&plain, &self::plain(candidate));
        if distance > most {
            continue;
        }
        match best {
            Some((least, _)) if distance > least => {}
            Some((least, known)) if distance == least => is_tied |= known != candidate,
            Some(_) | None => (best, is_tied) = (Some((distance, candidate)), false),
        }
    }
    best.filter(|_| !is_tied).map(|(_, candidate)| candidate)
}

/// The signal whose name is nearest, with or without `SIG`.
pub fn nearest_signal(text: &str) -> Option<&'static str> {
    let name = text.to_ascii_uppercase();
    nearest(name.strip_prefix("SIG").unwrap_or(&name), Signal::names())
}

/// What a key of another supervisor is called here, if it is among the legal ones.
pub(super) fn translated<'a>(
    word: &str,
    legal: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let word = plain(word);
    let (_, here) = OTHER_NAMES.iter().find(|(there, _)| plain(there) == word)?;
    legal.into_iter().find(|key| key == here)
}

/// Without what people mix up: case, hyphens and underscores.
fn plain(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested() {
        let keys = ["restart", "requires", "env", "env_files", "nice", "working_dir"];
        for (word, meant) in [
            ("restrat", Some("restart")),
            ("workingDir", Some("working_dir")),
            ("require", Some("requires")),
            ("evn", Some("env")),
            ("enviro", None),
            ("nixe", Some("nice")),
            ("nxxe", None),
        ] {
            assert_eq!(nearest(word, keys), meant, "{word}");
        }
    }

    #[test]
    fn between_two_equally_near_words_none_is_suggested() {
        assert_eq!(nearest("worker3", ["worker1", "worker2"]), None);
        assert_eq!(nearest("worker3", ["worker1", "worker1"]), Some("worker1"));
    }

    #[test]
    fn words_of_other_supervisors_are_known() {
        assert_eq!(translated("dependsOn", ["requires", "env"]), Some("requires"));
        assert_eq!(translated("environment", ["requires"]), None);
    }
}
