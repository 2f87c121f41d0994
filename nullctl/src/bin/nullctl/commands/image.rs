//! `image`: the rootfs store.

use crate::cli::{Command, valued};
use crate::run::image;

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
];
