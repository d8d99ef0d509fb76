//! A grading image as Tango's Dockerfile makes one: the users autolab and autograde, their homes, make, and
//! autodriver setuid root. In a container (`ENVIRONMENT` is set) it is the container itself; elsewhere a root
//! file system of its own in namespaces of their own, with the capabilities of `docker run`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::os::unix::fs::{chown, symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::binaries::tango_caller;
use crate::job::Running;
use crate::process::{descendants, processes, wait_until, Process};
use crate::{autodriver, Outcome};

/// Where autodriver is in it.
pub const AUTODRIVER: &str = "/opt/autodriver";
const CALLER: &str = "/opt/tango-caller";

/// The image, and who keeps its namespaces.
#[derive(Debug)]
pub struct Image {
    /// Its root, as seen from here.
    root: PathBuf,
    keeper: Option<(Child, i32)>,
    _folder: Option<TempDir>,
    autolab: u32,
    autograde: u32,
    capabilities: bool,
}

/// One call of a program in it by an ordinary user.
#[derive(Debug)]
pub struct Call<'a> {
    image: &'a Image,
    uid: u32,
    groups: String,
    acts: Vec<String>,
    command: Vec<OsString>,
}

impl Default for Image {
    fn default() -> Image {
        Image::new()
    }
}

fn is_driver(one: &Process) -> bool {
    one.name == "autodriver" && one.uid == 0
}

impl Image {
    /// A fresh one. Tests that use it are [`crate::alone`].
    pub fn new() -> Image {
        crate::require_root();
        let in_container = std::env::var_os("ENVIRONMENT").is_some();
        // What is in its /home and /tmp is removed.
        assert!(
            !in_container || Path::new("/.dockerenv").exists(),
            "ENVIRONMENT is set outside of a container"
        );
        // Uids that nobody else's processes have: a container has its own machine's.
        let number = std::process::id() % 1000 * 2;
        let folder = (!in_container).then(|| {
            let folder = TempDir::with_prefix("tango-").expect("a folder");
            fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("chmod");
            folder
        });
        let root = folder.as_ref().map_or_else(|| PathBuf::from("/"), |folder| folder.path().to_owned());
        let (autolab, autograde) = (50_000 + number, 50_001 + number);
        let mut image =
            Image { root, keeper: None, _folder: folder, autolab, autograde, capabilities: false };
        if in_container {
            image.empty();
        } else {
            image.make_root();
        }
        image.furnish();
        if !in_container {
            image.keeper = Some(image.start_keeper());
        }
        image
    }

    /// As root of a virtual machine has them: every capability.
    #[must_use]
    pub fn with_every_capability(mut self) -> Image {
        assert!(self.keeper.is_some(), "a container cannot be given more than it has");
        self.capabilities = true;
        self
    }

    /// Removes what an earlier image of the same container has.
    fn empty(&self) {
        for place in ["/home", "/tmp", "/var/tmp"] {
            for entry in fs::read_dir(place).expect("it can be listed") {
                let path = entry.expect("an entry").path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        }
    }

    /// The machine's programs and libraries, to be mounted, and empty directories for the rest.
    fn make_root(&self) {
        for name in ["usr", "etc", "proc", "dev/shm", "home", "opt", "run", "tmp", "var/tmp"] {
            fs::create_dir_all(self.path(name)).expect("mkdir");
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            let here = Path::new("/").join(name);
            match fs::read_link(&here) {
                Ok(target) => symlink(target, self.path(name)).expect("symlink"),
                Err(_) => fs::create_dir(self.path(name)).expect("mkdir"),
            }
        }
        for name in ["null", "zero", "urandom", "full"] {
            fs::write(self.path(&format!("dev/{name}")), "").expect("a place for the device");
        }
        for name in ["tmp", "var/tmp", "dev/shm"] {
            fs::set_permissions(self.path(name), Permissions::from_mode(0o1777)).expect("chmod");
        }
        for name in ["etc/passwd", "etc/group"] {
            fs::write(self.path(name), "root:x:0:0::/root:/bin/sh\n").expect("an account file");
        }
    }

    fn furnish(&self) {
        let Image { autolab, autograde, .. } = self;
        let keep = |file: &str, ours: String| {
            let old = fs::read_to_string(self.path(file)).expect("an account file");
            let others = old.lines().filter(|line| !line.starts_with("auto")).map(|line| format!("{line}\n"));
            fs::write(self.path(file), others.collect::<String>() + &ours).expect("an account file");
        };
        let home = |name: &str, id| format!("{name}:x:{id}:{id}::/home/{name}:/bin/sh\n");
        keep("etc/passwd", home("autolab", autolab) + &home("autograde", autograde));
        keep("etc/group", format!("autolab:x:{autolab}:\nautograde:x:{autograde}:\n"));
        fs::create_dir_all(self.path("opt")).expect("mkdir");
        for (from, to, mode) in [(autodriver(), AUTODRIVER, 0o6755), (tango_caller(), CALLER, 0o755)] {
            let to = self.path(&to[1..]);
            if !to.exists() {
                fs::copy(from, &to).expect("the program can be copied");
            }
            fs::set_permissions(&to, Permissions::from_mode(mode)).expect("chmod");
        }
        for (name, id) in [("autolab", autolab), ("autograde", autograde)] {
            fs::create_dir_all(self.path(&format!("home/{name}"))).expect("mkdir");
            self.give(&format!("home/{name}"), *id);
        }
    }

    /// A process that keeps a mount and a PID namespace.
    fn start_keeper(&self) -> (Child, i32) {
        let binds = "for name in usr bin sbin lib lib64; do [ -L $name ] || mount --rbind /$name $name; done
            for name in null zero urandom full; do mount --bind /dev/$name dev/$name; done
            mount -t proc proc proc";
        let script =
            format!("mount --bind . . && cd \"$PWD\" && {binds} && exec chroot . /bin/sleep infinity");
        let child = Command::new("unshare")
            .args(["--mount", "--pid", "--ipc", "--fork", "--kill-child", "/bin/sh", "-ec", &script])
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        let sleep = || descendants(pid).into_iter().find(|one| one.name == "sleep");
        let inside = wait_until(Duration::from_secs(20), sleep).expect("the image's first process").pid;
        (child, inside)
    }

    /// A path of it, from here; relative to its root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Gives a file to a user and their group.
    pub fn give(&self, path: &str, uid: u32) {
        chown(self.path(path), Some(uid), Some(uid)).expect("chown");
    }

    /// The uid of the user who calls autodriver.
    pub fn autolab(&self) -> u32 {
        self.autolab
    }

    /// The uid of the user that jobs run as.
    pub fn autograde(&self) -> u32 {
        self.autograde
    }

    /// Puts a job where Tango puts it: files that are root's, in the directory of autolab's.
    pub fn put_job(&self, makefile: &str) {
        let home = self.path("home/autolab");
        fs::create_dir_all(&home).expect("mkdir");
        self.give("home/autolab", self.autolab);
        fs::write(home.join("Makefile"), makefile).expect("a Makefile");
    }

    /// As [`Image::put_job`], of a job that is a script of the shell.
    pub fn put_script(&self, script: &str) {
        self.put_job("all:\n\t@sh ./script\n");
        fs::write(self.path("home/autolab/script"), script).expect("a script");
    }

    /// The witness of a call that is under way, or as a first process the driver: of this call, since others'
    /// run beside it.
    pub fn witness(&self, call: &Running) -> i32 {
        let own = processes().into_iter().filter(|one| one.pid == call.pid());
        let mut all = own.chain(descendants(call.pid()));
        all.find(is_driver).expect("an autodriver that is root's").pid
    }

    /// The driver of a call that is under way.
    pub fn driver(&self, call: &Running) -> i32 {
        let witness = self.witness(call);
        let status = fs::read_to_string(format!("/proc/{witness}/status")).expect("it is there");
        let number = status.lines().find(|line| line.starts_with("NSpid:"));
        if number.is_some_and(|line| line.split_whitespace().next_back() == Some("1")) {
            return witness;
        }
        let below = descendants(witness).into_iter().find(|one| is_driver(one) && one.parent == witness);
        below.expect("a driver below it").pid
    }

    /// A call by a user of the image, in `/home`.
    pub fn call<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Call<'_> {
        let command = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let groups = self.autolab.to_string();
        Call { image: self, uid: self.autolab, groups, acts: vec!["cd=/home".into()], command }
    }

    /// `autodriver WORDS...` by autolab.
    pub fn autodriver<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Call<'_> {
        let words = words.into_iter().map(|word| word.as_ref().to_owned());
        self.call([OsString::from(AUTODRIVER)].into_iter().chain(words))
    }

    /// `autodriver WORDS...` by autolab, as the first process of a PID namespace.
    pub fn first<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Running {
        let (_, pid) = self.keeper.as_ref().expect("a container has its own first process");
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid.to_string(), "--mount", "--pid", "--root", "--wd=/", "--"]);
        command.args(["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child", "--", CALLER]);
        command
            .arg(self.autolab.to_string())
            .arg(self.autolab.to_string())
            .args(["cd=/home", "--", AUTODRIVER]);
        command.args(words.into_iter().map(|word| word.as_ref().to_owned())).stdin(Stdio::null());
        Running::start_command(command)
    }

    /// Runs `autodriver OPTIONS... autolab` on a script as the job.
    pub fn run(&self, options: &[&str], script: &str) -> Outcome {
        self.put_script(script);
        self.autodriver(options.iter().chain(&["autolab"])).run()
    }
}

impl Call<'_> {
    /// By another user.
    #[must_use]
    pub fn by(mut self, uid: u32) -> Self {
        self.uid = uid;
        self.groups = uid.to_string();
        self
    }

    /// With another gid, and other groups behind it.
    #[must_use]
    pub fn groups(mut self, groups: &str) -> Self {
        self.groups = groups.to_owned();
        self
    }

    /// After doing something that the program must not trust; see tango-caller.
    #[must_use]
    pub fn act(mut self, act: &str) -> Self {
        self.acts.push(act.to_owned());
        self
    }

    /// The command, to be started by other means.
    pub fn command(self) -> Command {
        let Call { image, uid, groups, acts, command: words } = self;
        let mut command = match &image.keeper {
            Some((_, pid)) => {
                let mut command = Command::new("nsenter");
                command.args(["--target", &pid.to_string(), "--mount", "--pid", "--ipc", "--root", "--wd=/"]);
                command.args(["--", CALLER]);
                command
            }
            None => Command::new(CALLER),
        };
        command.arg(uid.to_string()).arg(groups);
        if image.capabilities {
            command.arg("every-capability");
        }
        command.args(acts).arg("--").args(words).stdin(Stdio::null());
        command
    }

    /// Starts it.
    pub fn start(self) -> Running {
        Running::start(self.command(), None)
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        self.start().wait()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.keeper {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
