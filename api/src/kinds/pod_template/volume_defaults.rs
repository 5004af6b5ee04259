//! Defaults of volumes.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Volume};

use super::defaults::{default_field_selector, default_pull_policy, set_if_blank};

/// Permissions of files in a volume that does not say: `0644`.
const FILE_MODE: i32 = 0o644;

pub fn default_volume(volume: &mut Volume) {
    if !has_source(volume) {
        volume.empty_dir = Some(k8s_openapi::api::core::v1::EmptyDirVolumeSource::default());
    }
    if let Some(source) = &mut volume.secret {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.config_map {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.downward_api {
        source.default_mode.get_or_insert(FILE_MODE);
        source.items.iter_mut().flatten().for_each(default_downward_file);
    }
    if let Some(source) = &mut volume.projected {
        source.default_mode.get_or_insert(FILE_MODE);
        for projection in source.sources.iter_mut().flatten() {
            if let Some(token) = &mut projection.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
            let files = projection.downward_api.iter_mut().flat_map(|downward| downward.items.iter_mut().flatten());
            files.for_each(default_downward_file);
        }
    }
    if let Some(source) = &mut volume.host_path {
        source.type_.get_or_insert_default();
    }
    if let Some(source) = &mut volume.iscsi {
        set_if_blank(&mut source.iscsi_interface, "default");
    }
    if let Some(source) = &mut volume.rbd {
        set_if_blank(&mut source.pool, "rbd");
        set_if_blank(&mut source.user, "admin");
        set_if_blank(&mut source.keyring, "/etc/ceph/keyring");
    }
    if let Some(source) = &mut volume.azure_disk {
        set_if_blank(&mut source.caching_mode, "ReadWrite");
        set_if_blank(&mut source.kind, "Shared");
        set_if_blank(&mut source.fs_type, "ext4");
        source.read_only.get_or_insert(false);
    }
    if let Some(source) = &mut volume.scale_io {
        set_if_blank(&mut source.storage_mode, "ThinProvisioned");
        set_if_blank(&mut source.fs_type, "xfs");
    }
    if let Some(claim) = volume.ephemeral.as_mut().and_then(|source| source.volume_claim_template.as_mut()) {
        set_if_blank(&mut claim.spec.volume_mode, "Filesystem");
    }
    if let Some(source) = &mut volume.image {
        let reference = source.reference.clone();
        default_pull_policy(&mut source.pull_policy, reference.as_deref());
    }
}

fn default_downward_file(file: &mut DownwardAPIVolumeFile) {
    if let Some(field) = &mut file.field_ref {
        default_field_selector(field);
    }
    if let Some(resource) = &mut file.resource_field_ref {
        resource.divisor.get_or_insert_with(|| k8s_openapi::apimachinery::pkg::api::resource::Quantity("0".to_owned()));
    }
}

fn has_source(volume: &Volume) -> bool {
    let bare = Volume { name: volume.name.clone(), ..Volume::default() };
    *volume != bare
}
