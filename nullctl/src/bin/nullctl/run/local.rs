//! Commands that need no node, or only its fingerprint: keys, known nodes, manifests, the version.

use nullctl::keys::{PrivateKey, PublicKey};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

use crate::cli::Arguments;
use crate::context::{Context, Silence, say};
use crate::failure::{Failure, status};
use crate::link::{Link, read_key};
use crate::nodes::{Node, Nodes, Target, with_port};
use crate::print::{Table, facts, visible};
use crate::run::net::marks;

pub fn key_gen(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let path = match given.value("out") {
        Some(path) => path.into(),
        None => context.key_path()?,
    };
    let key = PrivateKey::create(&path).map_err(|error| {
        Failure::local(
            status::USAGE,
            error.to_string(),
            "a key is never replaced",
            "name another file, or use the key that is there: nullctl key show",
        )
    })?;
    show_key(context, &path, key.public())
}

pub fn key_show(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let path: PathBuf = match given.at(0) {
        Some(path) => path.into(),
        None => context.key_path()?,
    };
    show_key(context, &path, read_key(&path)?.public())
}

fn show_key(context: &Context, path: &Path, public: PublicKey) -> Result<u8, Failure> {
    let fingerprint = public.fingerprint().to_string();
    if context.json {
        let file = path.display().to_string();
        let object = json!({ "file": file, "key": public.to_string(), "fingerprint": fingerprint });
        return say(&format!("{object}\n")).map(|()| 0);
    }
    say(&facts(&[
        ("private key", path.display().to_string()),
        ("public key", public.to_string()),
        ("fingerprint", fingerprint),
    ]))?;
    let block = format!(
        "[[operator]]\nname = \"YOUR-NAME\"\nkey = \"{public}\"\nrole = \"admin\"   # reader | operator | admin"
    );
    say(&format!(
        "\nTo let this key in, add to operators.toml on the node's NULLBOX-CONFIG volume:\n\n{block}\n"
    ))?;
    Ok(0)
}

pub fn node_trust(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let address = with_port(given.required(0))?;
    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
    let name = given.value("name").unwrap_or(host).to_owned();
    let pin = context.asked.pin.as_deref().map(str::parse).transpose().map_err(
        |error: nullctl::keys::KeyTextError| {
            Failure::usage(error.to_string(), "copy it from the node's console")
        },
    )?;
    let key = context.key_path()?;
    // Without a pin this fails, and says which key the node shows.
    Link::open(
        &Target::Tls { address: address.clone(), key: key.clone(), pin },
        Some(crate::context::SILENCE),
    )?;
    let Some(pin) = pin else {
        return Err(Failure::usage(
            "node trust: --pin is missing",
            "the fingerprint is on the node's console",
        ));
    };
    let path = context.nodes_path()?;
    let mut nodes = Nodes::read(&path)?;
    let node = Node {
        address: address.clone(),
        pin: pin.to_string(),
        key: context.asked.key.as_ref().map(|_| std::path::absolute(&key).unwrap_or(key)),
    };
    nodes.nodes.insert(name.clone(), node);
    if nodes.default.is_none() || given.has("default") {
        nodes.default = Some(name.clone());
    }
    nodes.write(&path)?;
    if context.json {
        return say(&format!("{}\n", json!({ "name": name, "address": address, "pin": pin.to_string() })))
            .map(|()| 0);
    }
    say(&format!("{name} is {address}, pinned to {pin} in {}\n", path.display()))?;
    Ok(0)
}

pub fn node_list(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let nodes = Nodes::read(&context.nodes_path()?)?;
    if context.json {
        return say(&format!("{}\n", json!(nodes))).map(|()| 0);
    }
    let mut table = Table::new(&["NODE", "ADDRESS", "FINGERPRINT", ""]);
    for (name, node) in &nodes.nodes {
        let mark = if nodes.default.as_ref() == Some(name) { "default" } else { "" };
        table.row(&[name, &node.address, &node.pin, mark]);
    }
    say(&table.render())?;
    Ok(0)
}

pub fn node_forget(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let path = context.nodes_path()?;
    let name = given.required(0);
    let mut nodes = Nodes::read(&path)?;
    if nodes.nodes.remove(name).is_none() {
        return Err(Failure::local(
            status::NOT_FOUND,
            format!("there is no known node `{name}`"),
            "",
            "nullctl node list shows them",
        ));
    }
    nodes.default = nodes.default.filter(|default| default != name);
    nodes.write(&path)?;
    if context.json {
        return say(&format!("{}\n", json!({ "forgotten": name }))).map(|()| 0);
    }
    say(&format!("{name} is forgotten\n"))?;
    Ok(0)
}

pub fn manifest_check(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let path = given.required(0);
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{path}: {error}"), "name an AGENT.toml"))?;
    match abi::manifest::parse(path, &text) {
        Ok(manifest) if context.json => say(&format!("{}\n", json!(manifest))).map(|()| 0),
        Ok(manifest) => {
            let mut text = format!("{path} is right: agent {} {}\n", manifest.name, manifest.version);
            for grant in &manifest.network_allow {
                let how = marks(grant, false);
                text.push_str(&format!(
                    "  may reach {grant}{}\n",
                    if how == "-" { String::new() } else { format!(" ({how})") }
                ));
            }
            say(&text).map(|()| 0)
        }
        Err(error) if context.json => {
            say(&format!("{}\n", json!({ "wrong": error })))?;
            Ok(status::FAILED)
        }
        Err(error) => {
            let place = match (error.line, error.field.as_str()) {
                (0, field) => field.to_owned(),
                (line, field) => format!("line {line}: {field}"),
            };
            Err(Failure::local(
                status::FAILED,
                format!("{path}: {place} = {}", visible(&error.value)),
                error.rule.clone(),
                error.remedy.clone(),
            ))
        }
    }
}

pub fn call(context: &Context, given: &Arguments) -> Result<u8, Failure> {
    let params: Value = match given.at(1) {
        None => Value::Null,
        Some(text) => serde_json::from_str(text).map_err(|error| {
            Failure::usage(format!("PARAMS is not JSON: {error}"), "write them as one JSON object, quoted")
        })?,
    };
    let result = context
        .ask(given.required(0), &params, Silence::Ordinary)?
        .result(&mut |note| say(&format!("{}\n", json!({ note.method.as_str(): note.params }))))?;
    say(&format!("{result}\n")).map(|()| 0)
}

pub fn version(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if context.json {
        say(&format!("{}\n", json!({ "version": version, "guest_protocol": abi::guest::PROTOCOL })))?;
    } else {
        say(&format!("nullctl {version}\n"))?;
    }
    Ok(0)
}
