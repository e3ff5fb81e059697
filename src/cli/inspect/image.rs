//! An image as Docker's API describes it.

use coracle_images::{Image, Reference};
use serde_json::{Value, json};

/// Parts of an image's configuration that templates ask for whether they are there or not.
const CONFIG_KEYS: [&str; 11] = [
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "Healthcheck",
    "OnBuild",
];

/// Describes an image.
pub fn describe(image: &Image) -> Result<Value, serde_json::Error> {
    let tags: Vec<String> = image.names.iter().map(Reference::familiar).collect();
    let mut digests: Vec<String> =
        image.names.iter().map(|name| format!("{}@{}", name.familiar_name(), image.manifest)).collect();
    digests.dedup();
    let layers: Vec<String> = image.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    Ok(json!({
        "Id": image.id.to_string(),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": image.config.history().iter().flatten().last().and_then(|entry| entry.comment().clone()).unwrap_or_default(),
        "Created": image.config.created(),
        "Author": image.config.author().clone().unwrap_or_default(),
        "Architecture": image.config.architecture().to_string(),
        "Variant": image.config.variant(),
        "Os": image.config.os().to_string(),
        "Size": image.size_bytes,
        "VirtualSize": image.size_bytes,
        "Config": config(image)?,
        "RootFS": { "Type": "layers", "Layers": layers },
    }))
}

/// Gives the configuration with every key that Docker has.
pub fn config(image: &Image) -> Result<Value, serde_json::Error> {
    let mut config = serde_json::to_value(image.config.config())?;
    if config.is_null() {
        config = json!({});
    }
    for key in CONFIG_KEYS {
        if config.get(key).is_none() {
            config[key] = match key {
                "User" | "WorkingDir" => "".into(),
                _ => Value::Null,
            };
        }
    }
    Ok(config)
}
