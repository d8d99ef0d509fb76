//! The `qemu` backend: a virtual machine for each connection, from a kernel and an initramfs.
//!
//! The guest's first process is `autodriver serve` on a virtio port, which is qemu's stdin and stdout: no
//! network, no disk but one that can only be read, nothing to wait for but the guest itself. The end of the
//! connection is the end of the first process, and with it of the guest; qemu is a child of this program, and
//! ends with it. What the guest's kernel says on its console, a panic for one, is told where the connection breaks.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{access, AccessFlags};
use serde_json::json;

use super::{Backend, BackendError, Name, Peer};

const PROGRAM: &str = "qemu-system-x86_64";
/// Of the guest's kernel: a panic is its end, and cgroups are those of version 2.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 oops=panic softlockup_panic=1 cgroup_no_v1=all no_timer_check";
/// What the first process of the guest finds on the command line where it shall take its root file system from.
const ROOT_DISK: &str = " autodriver.root=/dev/vda";

/// What configures it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct QemuOptions {
    /// qemu: the guest's kernel; scripts/qemu-image makes one
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// qemu: its initramfs, whose first process is an 'autodriver serve' on the port that is called output
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// qemu: a disk that holds the machine's root file system (squashfs, ext4 or erofs), of which nothing is changed
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_disk: Option<PathBuf>,
    /// qemu: how the guest's processor is made (default: kvm where /dev/kvm can be used, else tcg, which emulates it)
    #[arg(long, value_enum, value_name = "kvm|tcg")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accel: Option<Accelerator>,
}

/// What makes the guest's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// The machine's own does.
    Kvm,
    /// qemu emulates it: some ten times slower.
    Tcg,
}

impl Accelerator {
    fn best() -> Accelerator {
        let usable = access("/dev/kvm", AccessFlags::R_OK | AccessFlags::W_OK).is_ok();
        if usable {
            Accelerator::Kvm
        } else {
            Accelerator::Tcg
        }
    }

    fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// Starts one machine for each connection.
#[derive(Clone, Debug)]
pub struct Qemu {
    options: QemuOptions,
    memory: u64,
    cpus: u16,
}

impl Qemu {
    /// With so many bytes of memory and so many processors.
    pub(super) fn new(options: QemuOptions, memory: u64, cpus: u16) -> Qemu {
        Qemu { options, memory, cpus }
    }

    fn command(&self) -> Result<Command, BackendError> {
        let kernel = given("--kernel", self.options.kernel.as_deref())?;
        let initramfs = given("--initramfs", self.options.initramfs.as_deref())?;
        // A guest that hangs does not see the end of its input: qemu ends with whoever started it.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "--",
            PROGRAM,
            "-M",
            "q35",
            "-cpu",
            "max,-arch-capabilities",
            "-nodefaults",
            "-no-user-config",
        ]);
        let accelerator = self.options.accel.unwrap_or_else(Accelerator::best).name();
        command.args(["-no-reboot", "-display", "none", "-accel", accelerator]);
        command.args(["-m", &format!("{}M", self.memory >> 20), "-smp", &self.cpus.to_string()]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
        let mut append = COMMAND_LINE.to_owned();
        if let Some(disk) = self.options.root_disk.as_deref() {
            let disk = given("--root-disk", Some(disk))?;
            append.push_str(ROOT_DISK);
            command.args(["-blockdev", &read_only(disk)?, "-device", "virtio-blk-pci,drive=root"]);
        }
        command.args(["-append", &append]);
        command.args(["-serial", "file:/dev/stderr", "-device", "virtio-serial-pci"]);
        command.args(["-chardev", "stdio,id=output,signal=off"]);
        command.args(["-device", "virtserialport,chardev=output,name=output"]);
        Ok(command)
    }
}

/// What qemu is told of a disk called `root`.
fn read_only(disk: &Path) -> Result<String, BackendError> {
    let name = disk.to_str().ok_or_else(|| {
        BackendError(format!("--root-disk '{}' is no UTF-8, as qemu needs it; rename it", disk.display()))
    })?;
    let file = json!({ "driver": "file", "filename": name });
    Ok(json!({ "driver": "raw", "node-name": "root", "read-only": true, "file": file }).to_string())
}

/// A file, which qemu itself would only name.
fn given<'a>(option: &str, path: Option<&'a Path>) -> Result<&'a Path, BackendError> {
    let path = path
        .ok_or_else(|| BackendError(format!("--backend qemu needs {option} FILE; see scripts/qemu-image")))?;
    match path.metadata() {
        Ok(file) if file.is_file() => Ok(path),
        Ok(_) => Err(BackendError(format!("{option} '{}' is no file", path.display()))),
        Err(error) => Err(BackendError(format!("{option} '{}': {error}", path.display()))),
    }
}

impl Backend for Qemu {
    fn create(&self, _machine: &Name) -> Result<(), BackendError> {
        self.command().map(drop)
    }

    fn connect(&self, _machine: &Name) -> Result<Peer, BackendError> {
        Peer::spawn(&mut self.command()?).map_err(|error| {
            BackendError(format!("cannot start 'setpriv' for {PROGRAM}: {error}; install util-linux"))
        })
    }

    fn destroy(&self, _machine: &Name) -> Result<(), BackendError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let machine = "m".parse().unwrap();
        let error = |options| Qemu::new(options, 1 << 30, 1).create(&machine).unwrap_err().to_string();
        assert!(error(QemuOptions::default()).contains("--kernel FILE"));
        let kernel = Some("/nowhere/vmlinuz".into());
        assert!(error(QemuOptions { kernel, ..QemuOptions::default() })
            .contains("--kernel '/nowhere/vmlinuz': No such file"));
        let kernel = Some("/".into());
        assert!(error(QemuOptions { kernel, ..QemuOptions::default() }).contains("is no file"));
        let (kernel, root_disk) = (Some("/proc/self/exe".into()), Some("/nowhere/disk".into()));
        assert!(error(QemuOptions { initramfs: kernel.clone(), kernel, root_disk, accel: None })
            .contains("--root-disk '/nowhere/disk': No such file"));
    }
}
