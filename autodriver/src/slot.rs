//! A place for jobs: a leased uid and storage, from `open` to `close`. Jobs run in it one after
//! the other, each in a sandbox and a cgroup of its own.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use autodriver_protocol::report::{LayerReport, Leftover, Report, Restore, Timing, Usage, REPORT_VERSION};
use autodriver_protocol::Layer;
use nix::errno::Errno;

use crate::facts::Facts;
use crate::fault::{Fault, Step};
use crate::keeper::Keeper;
use crate::plan::{Plan, User};
use crate::restore::{clear_cgroups, clear_held, look, mounts, process, remove_cgroup, sweep_if_ours};
use crate::sandbox::accounts::{Account, AccountFiles};
use crate::sandbox::cgroup::{Cgroup, Limits};
use crate::sandbox::home::Home;
use crate::sandbox::prepare::{prepare, Furnishings, Ground};
use crate::sandbox::spawn::begin;
use crate::sandbox::storage::{Attached, Storage};
use crate::sandbox::{Identity, Ids, NOBODY};
use crate::supervise::verdict::judge;
use crate::supervise::{self, Job, Outcome, Start};
use crate::uids::{self, Lease};

/// How many uids are passed over because another user has made a directory where theirs would be.
const SQUATTED_MAX: u32 = 100;

/// How long a driver that looks whether a uid's last holder is dead may have its lock.
const LOCK_MAX: Duration = Duration::from_millis(100);
/// How long the keeper of a killed driver may, while it clears what is left: longer than its processes may
/// take to die.
const KEEPER_MAX: Duration = Duration::from_secs(12);

/// A place for jobs.
#[derive(Debug)]
pub struct Slot {
    // In the order in which they are given back: the uid last. The keeper after what it keeps.
    shown: Option<Attached>,
    storage: Storage,
    files: AccountFiles,
    keeper: Option<Keeper>,
    /// Of a dedicated account.
    home: Option<Home>,
    holder: Holder,
    /// What its things are called: the uid, if it has one of its own.
    tag: String,
    /// Something of an earlier job of this slot is still there.
    leftovers: Vec<Leftover>,
    /// A job was started, or its files were put where they have to be looked for, and it was not followed to
    /// its end.
    unconcluded: bool,
}

/// Whose uid the jobs of a slot have.
#[derive(Debug)]
enum Holder {
    /// One of their own.
    Leased(Lease, Ids),
    /// The driver's, where it can give them no other.
    Callers(Identity),
}

impl Slot {
    /// Leases a uid and makes storage for files put before the first job; its limits replace these.
    ///
    /// # Errors
    /// Which of the two could not be had.
    pub fn open(user: &User, facts: &Facts, bytes: u64, inodes: u64) -> Result<Slot, Fault> {
        let files = AccountFiles::read("/")?;
        let mut tries = 0..SQUATTED_MAX;
        let Place { storage, keeper, home, holder, tag } = loop {
            match Place::make(user, facts, &files) {
                // Where jobs have no mounts their place is in /tmp, and another user was there first.
                Err(fault) if *user == User::Leased && fault.errno == Some(Errno::EEXIST) => {
                    tries.next().ok_or(fault)?;
                }
                placed => break placed?,
            }
        };
        storage.limit(bytes, inodes)?;
        let unconcluded = storage.is_home();
        Ok(Slot {
            shown: None,
            storage,
            files,
            keeper,
            home,
            holder,
            tag,
            leftovers: Vec::new(),
            // What is put into a home is looked for there.
            unconcluded,
        })
    }

    /// The home directory of a dedicated account.
    pub fn home(&self) -> Option<&Home> {
        self.home.as_ref()
    }

    /// The uid of its jobs.
    fn uid(&self) -> u32 {
        match &self.holder {
            Holder::Leased(lease, _) => lease.uid,
            Holder::Callers(_) => nix::unistd::geteuid().as_raw(),
        }
    }

    /// Whose that is.
    pub fn identity(&self) -> Identity {
        match &self.holder {
            Holder::Leased(_, ids) => Identity::Own(*ids),
            Holder::Callers(identity) => *identity,
        }
    }

    /// Its storage.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// What is known to be left of its jobs.
    pub fn leftovers(&self) -> Vec<Leftover> {
        self.leftovers.clone()
    }

    /// Starts a job; `last` says that no other comes after it.
    ///
    /// # Errors
    /// What could not be made. What is left of it all the same, [`Slot::close`] says.
    pub fn start(
        &mut self,
        plan: Plan,
        facts: &Facts,
        requested: Instant,
        stdin: Option<OwnedFd>,
        last: bool,
    ) -> Result<Job, Fault> {
        let started = self.begin(plan, facts, requested, stdin, last);
        if started.is_err() {
            self.abandon(facts);
        }
        started
    }

    /// Removes what is there of a job that was started, or half started, and not followed to its end.
    pub fn abandon(&mut self, facts: &Facts) {
        self.leftovers.extend(clear_cgroups(facts, &self.tag));
    }

    fn begin(
        &mut self,
        mut plan: Plan,
        facts: &Facts,
        requested: Instant,
        stdin: Option<OwnedFd>,
        last: bool,
    ) -> Result<Job, Fault> {
        supervise::check(&plan)?;
        self.storage.make_room()?;
        let uid = self.uid();
        if !plan.enforces(Layer::MountNamespace) && !self.storage.is_home() {
            let path = match self.storage.path() {
                Some(path) => path.to_owned(),
                None => {
                    let shown = self.storage.show(&uids::shown_place(&self.tag))?;
                    self.shown.insert(shown).0.clone()
                }
            };
            plan.show_storage_at(&path);
        }
        let other;
        let files = match plan.root.as_str() {
            "/" => &self.files,
            root => {
                other = AccountFiles::read(root)?;
                &other
            }
        };
        let name = files.name_of(uid);
        let account = match self.identity() {
            Identity::Own(ids) => Account { name, uid, gid: ids.gid },
            _ => Account::alone(name, uid),
        };
        let storage = &self.storage;
        let ground = Ground {
            plan: &plan,
            account: &account,
            tag: &self.tag,
            identity: self.identity(),
            storage: Some(storage),
            facts,
            stdin,
        };
        let starting = begin(&plan, prepare(ground)?)?;
        starting.furnish(&Furnishings {
            plan: &plan,
            account: &account,
            files,
            storage,
            disk: plan.storage_limit(),
            last,
        })?;
        let limits = Limits::of(&plan, facts.half_memory);
        let cgroup = Cgroup::create(facts, &self.tag, limits)?;
        let spawned = starting.finish(&plan, &cgroup)?;
        self.unconcluded = true;
        if let Some(keeper) = &self.keeper {
            keeper.job_started(spawned.init.pid);
        }
        let identity = self.identity();
        Job::new(Start { plan, spawned, cgroup, identity, storage, requested, facts })
    }

    /// Puts the machine back after a job, looks whether it is, and reports.
    pub fn conclude(&mut self, outcome: Outcome) -> Report {
        let started = Instant::now();
        let Outcome { happened, account, cgroup, unkilled, output, plan, setup, wall, run } = outcome;
        self.shown = None;
        self.unconcluded = false;
        let mut leftovers = remove_cgroup(cgroup);
        leftovers.extend(unkilled.into_iter().map(process));
        // Without namespaces that take them along, processes, objects and files have to be looked for.
        let swept = [Layer::ProcessTree, Layer::MountNamespace, Layer::IpcNamespace];
        if let (Holder::Leased(lease, _), true) =
            (&self.holder, swept.into_iter().any(|one| plan.substitutes(one)))
        {
            // Where Landlock keeps a job from others' directories, what they hold says nothing about it.
            let confined = plan.enforces(Layer::Landlock);
            leftovers.extend(sweep_if_ours(lease.uid, self.storage.path(), confined));
        }
        // What is found of a uid that others have too says nothing about the job.
        if let Holder::Leased(lease, _) = &self.holder {
            leftovers.extend(look(lease.uid, plan.enforces(Layer::IpcNamespace)));
        }
        self.leftovers.extend(leftovers.iter().cloned());
        if let Some(keeper) = &self.keeper {
            keeper.job_ended();
        }
        let verdict = judge(happened);
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Report {
            version: REPORT_VERSION,
            cause: verdict.cause,
            exit_code: verdict.exit_code,
            signal: verdict.signal,
            limits_hit: verdict.limits_hit.into_iter().map(str::to_owned).collect(),
            usage: Usage {
                wall_us: micros(wall),
                cpu_user_us: account.cpu_user_us,
                cpu_system_us: account.cpu_system_us,
                memory_peak_bytes: account.memory_peak,
                pids_peak: account.pids_peak,
            },
            output,
            layers: plan.layers,
            restore: Restore::from_leftovers(leftovers),
            fault: verdict.fault.as_ref().map(Fault::report),
            timing: Timing {
                setup_us: micros(setup),
                run_us: micros(run),
                restore_us: micros(started.elapsed()),
            },
        }
    }

    /// Gives everything back; what is left.
    pub fn close(self) -> Vec<Leftover> {
        let Slot { shown, storage, keeper, home, holder, tag, mut leftovers, unconcluded, .. } = self;
        if let (Holder::Leased(lease, _), true) = (&holder, unconcluded) {
            leftovers.extend(sweep_if_ours(lease.uid, storage.path(), true));
        }
        drop(shown);
        let place = storage.path().map(str::to_owned);
        drop(storage);
        drop(keeper);
        drop(home);
        if let Some(place) = place.filter(|place| std::fs::symlink_metadata(place).is_ok()) {
            leftovers.push(Leftover { kind: "file".into(), what: place });
        }
        if let Holder::Leased(lease, _) = holder {
            leftovers.extend(mounts(lease.uid));
            if !leftovers.is_empty() {
                lease.keep_record();
            } else if let Err(errno) = lease.give_back() {
                leftovers.push(Leftover { kind: "lease".into(), what: format!("{tag}: {errno}") });
            }
        }
        leftovers
    }
}

/// A uid, and what is made for it.
struct Place {
    storage: Storage,
    keeper: Option<Keeper>,
    home: Option<Home>,
    holder: Holder,
    tag: String,
}

impl Place {
    fn make(user: &User, facts: &Facts, files: &AccountFiles) -> Result<Place, Fault> {
        let own = |lease: Lease| {
            let ids = Ids::alone(lease.uid);
            Holder::Leased(lease, ids)
        };
        let holder = match user {
            _ if facts.own_uids.is_err() => Holder::Callers(Identity::shared(facts)),
            User::Leased => own(uids::lease(|uid| files.has_uid(uid))?),
            User::Uid(uid) => own(lease_user(*uid, LOCK_MAX)?),
            User::Name(name) => own(lease_user(files.uid_of(name)?, LOCK_MAX)?),
            User::Dedicated { ids, .. } => Holder::Leased(lease_user(ids.uid, KEEPER_MAX)?, *ids),
        };
        let home = match (user, &holder) {
            (User::Dedicated { ids, home }, Holder::Leased(..)) => Some(take_home(home, *ids, facts)?),
            _ => None,
        };
        let owner = match &holder {
            Holder::Leased(_, ids) => Some(*ids),
            Holder::Callers(_) => None,
        };
        let uid = owner.map(|ids| ids.uid);
        // Otherwise all that a job has dies with its driver.
        let keeper = if facts.mounts() { None } else { Some(Keeper::start(facts, uid)?) };
        let tag = uid.map_or_else(uids::own_tag, |uid| uid.to_string());
        let storage = match (&home, uid) {
            (Some(home), Some(uid)) if !facts.mounts() => Storage::home(home, uid),
            _ if !facts.mounts() => Storage::plain(uids::shown_place(&tag), uid),
            (_, Some(uid)) => Storage::create(owner, uids::mount_point(uid)),
            (_, None) => Storage::create(owner, format!("{}.storage", uids::shown_place(&tag))),
        };
        match storage {
            Ok(storage) => Ok(Place { storage, keeper, home, holder, tag }),
            Err(fault) => {
                if let Holder::Leased(lease, _) = holder {
                    // For the next driver, which removes it.
                    if !mounts(lease.uid).is_empty() {
                        lease.keep_record();
                    }
                }
                Err(fault)
            }
        }
    }
}

/// The home of a dedicated account whose lock is held, after whatever is there of a job that is not:
/// its driver was killed. What the account has on a machine where none was is no job's.
fn take_home(path: &str, ids: Ids, facts: &Facts) -> Result<Home, Fault> {
    let act = || format!("use the home directory {path}");
    let abandoned = Home::is_abandoned(path, ids).map_err(|errno| Fault::new(Step::Storage, act(), errno))?;
    let left = clear_held(facts, ids.uid, abandoned);
    if let Some(left) = left.first() {
        let why = format!("an earlier job has left {} {}", left.kind, left.what);
        return Err(Fault::refused(Step::Storage, act(), why));
    }
    Home::take(path, ids)
}

fn lease_user(uid: u32, wait: Duration) -> Result<Lease, Fault> {
    if [0, NOBODY, uids::STAND_IN].contains(&uid) {
        let why = "the sandbox's own processes have that uid; give another";
        return Err(Fault::refused(Step::Request, format!("run as uid {uid}"), why));
    }
    let until = Instant::now() + wait;
    loop {
        if let Some(lease) = uids::try_lease(uid)? {
            return Ok(lease);
        }
        if Instant::now() >= until {
            return Err(Fault::refused(
                Step::Uid,
                format!("run as uid {uid}"),
                "another job is running as it",
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The report on a job that could not be started, or not be followed.
pub fn failed(layers: Vec<LayerReport>, fault: &Fault, leftovers: Vec<Leftover>) -> Report {
    Report {
        version: REPORT_VERSION,
        cause: fault.cause(),
        exit_code: None,
        signal: None,
        limits_hit: Vec::new(),
        usage: Usage::default(),
        output: autodriver_protocol::report::OutputReport::default(),
        layers,
        restore: Restore::from_leftovers(leftovers),
        fault: Some(fault.report()),
        timing: Timing::default(),
    }
}
