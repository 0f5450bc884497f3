//! What helps against what nodes and managers say of tasks that cannot be, by what is in their words.

/// Words, and the cure. The first that is found counts, so the more exact ones come first.
const KNOWN: [(&str, &str); 19] = [
    ("has no variant for", "an image that has the nodes' platform, or `--constraint-add node.platform.arch==…` for nodes of the image's"),
    (
        "credentials",
        "nodes have no logins of their own: `swarmctl service update --with-registry-auth`, or docker's, hands on that of `docker login`",
    ),
    (
        "authentication",
        "nodes have no logins of their own: `swarmctl service update --with-registry-auth`, or docker's, hands on that of `docker login`",
    ),
    ("cannot connect to registry", "see to the way from the node to that registry, or name another one by `--image`"),
    ("no such host: registry", "is the registry's name right, and can the node resolve it? `--image` names another one"),
    ("timeout: registry", "see to the way from the node to that registry, or name another one by `--image`"),
    (
        "no such image",
        "is the name right, and is the tag there? `--image` names another one; a private one wants `swarmctl service update --with-registry-auth`, or docker's",
    ),
    ("could not mount volume", "see to its device or server from that node, or give the volume other `volume-opt`s under another name"),
    ("in use on this node with other driver options", "give the volume another name, or the same options to all services that use it"),
    (
        "mount source",
        "make the directory on every node where its tasks may go, keep them to nodes that have it by `--constraint-add`, or mount a volume",
    ),
    (
        "unhealthy container",
        "try the `--health-cmd` in a task by hand; `--health-start-period` gives it time to begin, `--no-healthcheck` does without",
    ),
    ("executable file not found", "is that program in the image? `--args` changes what is run, `--image` from what"),
    ("permission denied:", "is that a program, with the execute bit set, for this user? `--args` changes what is run, `--user` as whom"),
    ("not enough memory", "raise `--limit-memory`"),
    ("no space left", "make room on that node's disk"),
    ("already taken by", "publish another port, or end what has it on that node"),
    (
        "no free address left",
        "fewer replicas, or a network with a larger `--subnet`; an address is free again shortly after its task is gone",
    ),
    (
        "no address is left",
        "fewer replicas, or a network with a larger `--subnet`; an address is free again shortly after its task is gone",
    ),
    ("address pools of the cluster are used up", "remove networks that nobody uses, or give the network a `--subnet`"),
];

/// What helps, if the words are known.
pub(super) fn against(said: &str) -> Option<&'static str> {
    KNOWN.iter().find(|(words, _)| said.contains(words)).map(|(_, cure)| *cure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_exact_words_count() {
        let said = "no such image: 127.0.0.1:1/no/such:image: cannot connect to registry 127.0.0.1:1";
        assert!(against(said).is_some_and(|cure| cure.contains("the way from the node")));
        assert!(against("no such image: web:3").is_some_and(|cure| cure.contains("is the tag there")));
        assert_eq!(against("task: non-zero exit (7)"), None);
    }

    #[test]
    fn no_words_hide_behind_others() {
        for (index, (words, cure)) in KNOWN.iter().enumerate() {
            assert!(KNOWN[..index].iter().all(|(earlier, _)| !words.contains(earlier)), "{words} is never found");
            assert!(!cure.is_empty());
        }
    }
}
