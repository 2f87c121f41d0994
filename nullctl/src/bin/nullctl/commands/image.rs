//! `image`: the rootfs store.

use crate::cli::{Command, valued};
use crate::run::image;

const REMOVE_DETAILS: &str = "IMAGE is a name or a sha256: digest, which stands for the image with all its names. Refused while an \
     agent runs from it, or a workspace or snapshot was written above it. Layers that other images have stay.";

/// In the order of the help.
pub const COMMANDS: &[Command] = &[
    Command {
        path: "image list",
        arguments: &[],
        rest: "",
        about: "the rootfs store",
        details: "",
        options: &[],
        examples: &[("nullctl image list", "")],
        run: image::list,
    },
    Command {
        path: "image inspect",
        arguments: &["IMAGE"],
        rest: "",
        about: "one image: layers, environment, command, agents",
        details: "IMAGE is a name or a sha256: digest.",
        options: &[],
        examples: &[("nullctl image inspect python", "")],
        run: image::inspect,
    },
    Command {
        path: "image import",
        arguments: &["FILE"],
        rest: "",
        about: "import an OCI archive (OCI layout or docker save, tar) as a rootfs",
        details: "FILE - reads standard input, which is then kept in a temporary file, since its size goes first.",
        options: &[valued("name", "NAME", "name of the rootfs (required)")],
        examples: &[
            ("nullctl image import python.tar --name python", ""),
            ("nullctl image import - --name app", "from skopeo, docker save, ..."),
        ],
        run: image::import,
    },
    Command {
        path: "image remove",
        arguments: &["IMAGE"],
        rest: "",
        about: "remove a name, and the image with its last name",
        details: REMOVE_DETAILS,
        options: &[],
        examples: &[("nullctl image remove python", "")],
        run: image::remove,
    },
    Command {
        path: "image rm",
        arguments: &["IMAGE"],
        rest: "",
        about: "the same as image remove",
        details: REMOVE_DETAILS,
        options: &[],
        examples: &[("nullctl image rm python", "")],
        run: image::remove,
    },
    Command {
        path: "image prune",
        arguments: &[],
        rest: "",
        about: "remove images that no name, manifest, agent or disk has",
        details: "",
        options: &[],
        examples: &[("nullctl image prune", "")],
        run: image::prune,
    },
];
