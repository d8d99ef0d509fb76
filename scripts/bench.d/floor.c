/*
 * The kernel's share of a cold start: the box of a job as autodriver makes it, by a program that has nothing to
 * find out, to parse, to read back or to report. What autodriver takes more than this is what could be gained.
 *
 * floor CGROUP... -- DIRECTORY PROGRAM: runs PROGRAM, of DIRECTORY, which it sees as /mnt, in a box of its own and
 * in a new cgroup below each CGROUP. As root. It is no sandbox: the filter refuses nothing.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST 64
#define UID 60000
#define NOBODY 65534
#define FROZEN (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
#define OWN (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
#define LENGTH(array) (sizeof(array) / sizeof *(array))
/* In init and in the job as well: whoever waits for them sees that they are gone. */
#define MUST(call)                                                                                                     \
    ({                                                                                                                 \
        long must = (call);                                                                                            \
        if (must < 0) {                                                                                                \
            fprintf(stderr, "floor: %s: %s\n", #call, strerror(errno));                                               \
            _exit(1);                                                                                                  \
        }                                                                                                              \
        must;                                                                                                          \
    })

/* What stands at the top of the machine's root. */
static struct {
    char name[NAME_MAX + 1], link[NAME_MAX + 1];
    int directory, shown;
} top[MOST];
static size_t tops;
static int cgroups, cgroup[MOST];
static char name[32];

static void look_at_root(void)
{
    static const char *const hidden[] = { "home", "root", "run", "sys", "boot", "mnt", "media", "lost+found", "efi",
                                          "proc", "dev", "tmp" };
    DIR *root = opendir("/");

    if (!root)
        exit(1);
    for (struct dirent *entry; (entry = readdir(root)) && tops < MOST;) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        strcpy(top[tops].name, entry->d_name);
        if (entry->d_type == DT_LNK)
            MUST(readlinkat(dirfd(root), entry->d_name, top[tops].link, NAME_MAX));
        top[tops].directory = entry->d_type == DT_DIR;
        top[tops].shown = entry->d_type == DT_DIR || entry->d_type == DT_REG;
        for (size_t i = 0; i < LENGTH(hidden); i++)
            top[tops].shown &= strcmp(entry->d_name, hidden[i]) != 0;
        tops++;
    }
    closedir(root);
}

static pid_t spawn(unsigned long namespaces)
{
    struct clone_args args = { .flags = namespaces, .exit_signal = SIGCHLD };

    return MUST(syscall(SYS_clone3, &args, sizeof args));
}

static int filesystem(const char *type, const char *const (*options)[2], unsigned attributes)
{
    int context = MUST(fsopen(type, FSOPEN_CLOEXEC)), mount;

    for (; (*options)[0]; options++)
        MUST(fsconfig(context, FSCONFIG_SET_STRING, (*options)[0], (*options)[1], 0));
    MUST(fsconfig(context, FSCONFIG_CMD_CREATE, 0, 0, 0));
    mount = MUST(fsmount(context, FSMOUNT_CLOEXEC, attributes));
    close(context);
    return mount;
}

static int tree(int at, const char *path, int recursive)
{
    int flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0);

    return MUST(open_tree(at, path, flags));
}

static void attach(int mount, int at, const char *path)
{
    MUST(move_mount(mount, "", at, path, MOVE_MOUNT_F_EMPTY_PATH));
    close(mount);
}

static void freeze(int mount, unsigned long attributes, int recursive)
{
    struct mount_attr attr = { .attr_set = attributes };

    MUST(mount_setattr(mount, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &attr, sizeof attr));
}

static void hand_over(int socket, const int *fds, size_t count)
{
    union {
        char space[CMSG_SPACE(MOST * sizeof(int))];
        struct cmsghdr aligned;
    } control = { 0 };
    struct iovec byte = { "", 1 };
    struct msghdr message = { .msg_iov = &byte, .msg_iovlen = 1, .msg_control = &control,
                              .msg_controllen = CMSG_SPACE(count * sizeof(int)) };

    *CMSG_FIRSTHDR(&message) = (struct cmsghdr){ CMSG_LEN(count * sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
    memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), fds, count * sizeof(int));
    MUST(sendmsg(socket, &message, MSG_NOSIGNAL));
}

static void take_over(int socket, int *fds, size_t count)
{
    union {
        char space[CMSG_SPACE(MOST * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    char byte;
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
                              .msg_controllen = sizeof control };

    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1)
        _exit(1);
    memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&message)), count * sizeof(int));
}

/* Parts of the storage that are mounted in the job's root, in the order in which they are handed over. */
static const struct {
    const char *part, *at;
    unsigned long attributes;
} parts[] = {
    { "etc/passwd", "etc/passwd", FROZEN },
    { "etc/group", "etc/group", FROZEN },
    { "job", "job", OWN },
    { "tmp", "tmp", OWN },
    { "var_tmp", "var/tmp", OWN },
    { "dev", "dev", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC },
    { "shm", "dev/shm", OWN },
};
/* The storage and its part that is the root come before them. */
#define HANDED (2 + LENGTH(parts))

static void make_storage(int socket)
{
    static const char *const options[][2] = { { "mode", "0755" }, { "size", "268435456" }, { "nr_inodes", "65536" },
                                              { 0 } };
    static const char *const directories[] = { "root", "job", "tmp", "var_tmp", "shm", "dev", "etc", "root/job",
                                               "dev/shm", "dev/pts" };
    static const char *const files[] = { "etc/passwd", "etc/group" };
    static const struct {
        const char *name;
        unsigned major, minor;
    } devices[] = { { "dev/null", 1, 3 }, { "dev/zero", 1, 5 }, { "dev/full", 1, 7 }, { "dev/random", 1, 8 },
                    { "dev/urandom", 1, 9 }, { "dev/tty", 5, 0 } };
    static const char *const links[][2] = { { "/proc/self/fd", "dev/fd" }, { "/proc/self/fd/0", "dev/stdin" },
                                            { "/proc/self/fd/1", "dev/stdout" }, { "/proc/self/fd/2", "dev/stderr" },
                                            { "pts/ptmx", "dev/ptmx" } };
    int storage = filesystem("tmpfs", options, MOUNT_ATTR_NOSUID), given[HANDED], root;

    for (size_t i = 0; i < LENGTH(directories); i++)
        MUST(mkdirat(storage, directories[i], 0755));
    MUST(fchownat(storage, "job", UID, UID, AT_SYMLINK_NOFOLLOW));
    for (size_t i = 0; i < LENGTH(devices); i++)
        MUST(mknodat(storage, devices[i].name, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)));
    for (size_t i = 0; i < LENGTH(links); i++)
        MUST(symlinkat(links[i][0], storage, links[i][1]));
    for (size_t i = 0; i < LENGTH(files); i++)
        close(MUST(openat(storage, files[i], O_WRONLY | O_CREAT | O_CLOEXEC, 0644)));
    root = MUST(openat(storage, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    for (size_t i = 0; i < tops; i++) {
        if (*top[i].link)
            MUST(symlinkat(top[i].link, root, top[i].name));
        else if (top[i].directory)
            MUST(mkdirat(root, top[i].name, 0755));
        else
            close(MUST(openat(root, top[i].name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644)));
    }
    close(root);
    given[0] = storage;
    given[1] = tree(storage, "root", 0);
    for (size_t i = 0; i < LENGTH(parts); i++)
        given[2 + i] = tree(storage, parts[i].part, 0);
    hand_over(socket, given, HANDED);
    for (size_t i = 0; i < HANDED; i++)
        close(given[i]);
}

/* The limits that there are, and where the job enters: v1 and v2. */
static void make_cgroups(int socket)
{
    static const char *const limits[][2] = { { "memory.limit_in_bytes", "805306368" },
                                             { "memory.memsw.limit_in_bytes", "805306368" },
                                             { "memory.max", "805306368" },
                                             { "pids.max", "128" } };
    int entrances[MOST];

    for (int i = 0; i < cgroups; i++) {
        int directory;

        MUST(mkdirat(cgroup[i], name, 0700));
        directory = MUST(openat(cgroup[i], name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        for (size_t j = 0; j < LENGTH(limits); j++) {
            int file = openat(directory, limits[j][0], O_WRONLY | O_CLOEXEC);

            if (file >= 0)
                MUST(write(file, limits[j][1], strlen(limits[j][1])));
            close(file);
        }
        entrances[i] = openat(directory, "tasks", O_WRONLY | O_CLOEXEC);
        if (entrances[i] < 0)
            entrances[i] = MUST(openat(directory, "cgroup.procs", O_WRONLY | O_CLOEXEC));
        close(directory);
    }
    hand_over(socket, entrances, cgroups);
    for (int i = 0; i < cgroups; i++)
        close(entrances[i]);
}

static void make_root(int socket, const char *shown)
{
    static const char *const pts[][2] = { { "mode", "0620" }, { "ptmxmode", "0666" }, { "max", "64" }, { 0 } };
    static const char *const proc[][2] = { { "hidepid", "2" }, { 0 } };
    int machine[MOST], bound, given[HANDED], root;

    MUST(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    MUST(chdir("/"));
    for (size_t i = 0; i < tops; i++)
        machine[i] = top[i].shown ? tree(AT_FDCWD, top[i].name, strcmp(top[i].name, "var")) : -1;
    bound = tree(AT_FDCWD, shown, 1);
    take_over(socket, given, HANDED);
    root = given[1];
    attach(given[0], AT_FDCWD, "/proc");
    MUST(move_mount(root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH));
    for (size_t i = 0; i < tops; i++)
        if (machine[i] >= 0)
            attach(machine[i], root, top[i].name);
    freeze(root, FROZEN, 1);
    for (size_t i = 0; i < LENGTH(parts); i++) {
        freeze(given[2 + i], parts[i].attributes, 0);
        attach(given[2 + i], root, parts[i].at);
    }
    attach(filesystem("devpts", pts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), root, "dev/pts");
    attach(filesystem("proc", proc, OWN | MOUNT_ATTR_NOEXEC), root, "proc");
    freeze(bound, FROZEN, 1);
    attach(bound, root, "mnt");
    MUST(fchdir(root));
    MUST(syscall(SYS_pivot_root, ".", "."));
}

static void become(unsigned id)
{
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct none[2] = { 0 };

    MUST(syscall(SYS_setgroups, 0, 0));
    MUST(syscall(SYS_setresgid, id, id, id));
    MUST(syscall(SYS_setresuid, id, id, id));
    MUST(syscall(SYS_capset, &header, none));
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

/* As many comparisons as a call meets in autodriver's filter, which is a tree. */
static void filter(size_t length)
{
    struct sock_filter code[MOST] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0) };
    struct sock_fprog program = { length, code };

    for (size_t i = 1; i < length; i++)
        code[i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1000 + i, 0, 0);
    code[length - 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static void landlock(void)
{
    static const struct {
        const char *path;
        unsigned long access;
    } rules[] = { { "/", 0xd }, { "/job", 0x1fff }, { "/tmp", 0x1fff }, { "/var/tmp", 0x1fff }, { "/dev", 0xe },
                  { "/dev/shm", 0x1fff }, { "/proc", 0xf } };
    struct landlock_ruleset_attr handled = { .handled_access_fs = 0x1fff };
    int ruleset = MUST(syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0));

    for (size_t i = 0; i < LENGTH(rules); i++) {
        int place = MUST(open(rules[i].path, O_PATH | O_CLOEXEC));
        struct landlock_path_beneath_attr rule = { rules[i].access, place };

        MUST(syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0));
        close(place);
    }
    MUST(syscall(SYS_landlock_restrict_self, ruleset, 0));
}

static void job(const int *entrances, const int *ready, char *program)
{
    static const struct {
        int resource;
        rlim_t limit;
    } rlimits[] = { { RLIMIT_CORE, 0 }, { RLIMIT_FSIZE, 100 << 20 }, { RLIMIT_NOFILE, 1024 },
                    { RLIMIT_STACK, 8 << 20 }, { RLIMIT_MEMLOCK, 1 << 16 }, { RLIMIT_NPROC, 129 },
                    { RLIMIT_SIGPENDING, 1024 }, { RLIMIT_MSGQUEUE, 0 }, { RLIMIT_NICE, 0 }, { RLIMIT_RTPRIO, 0 } };
    char byte, *arguments[] = { program, 0 }, *environment[] = { "PATH=/usr/bin:/bin", 0 };
    int null;

    close(ready[1]);
    for (int i = 0; i < cgroups; i++)
        MUST(write(entrances[i], "0", 1));
    MUST(unshare(CLONE_NEWCGROUP));
    MUST(setsid());
    null = MUST(open("/dev/null", O_RDONLY | O_CLOEXEC));
    MUST(dup2(null, 0));
    MUST(setpriority(PRIO_PROCESS, 0, 0));
    for (size_t i = 0; i < LENGTH(rlimits); i++)
        MUST(setrlimit(rlimits[i].resource, &(struct rlimit){ rlimits[i].limit, rlimits[i].limit }));
    become(UID);
    landlock();
    if (read(ready[0], &byte, 1) != 1)
        _exit(1);
    MUST(close_range(3, ~0U, CLOSE_RANGE_CLOEXEC));
    filter(60);
    MUST(chdir("/job"));
    MUST(execve(program, arguments, environment));
}

static void init(int hand, int report, const char *shown, char *program)
{
    struct ifreq loopback = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
    int entrances[MOST], ready[2], fd, status;
    cpu_set_t every;
    pid_t child;

    memset(&every, 0xff, sizeof every);
    MUST(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS));
    make_root(hand, shown);
    for (int i = 0; prctl(PR_CAPBSET_DROP, i, 0, 0, 0) == 0;)
        i++;
    MUST(pipe2(ready, O_CLOEXEC));
    take_over(hand, entrances, cgroups);
    sched_setaffinity(0, sizeof every, &every);
    child = spawn(0);
    if (child == 0)
        job(entrances, ready, program);
    MUST(umount2(".", MNT_DETACH));
    fd = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    MUST(ioctl(fd, SIOCSIFFLAGS, &loopback));
    MUST(sethostname("job", 3));
    become(NOBODY);
    MUST(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    MUST(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
    filter(20);
    MUST(write(ready[1], "", 1));
    while (wait4(-1, &status, 0, 0) != child)
        ;
    MUST(write(report, &status, sizeof status));
    _exit(0);
}

int main(int argc, char **argv)
{
    int hand[2], report[2], status = 1;
    cpu_set_t others;
    pid_t child;

    while (cgroups + 1 < argc && cgroups < MOST && strcmp(argv[cgroups + 1], "--")) {
        cgroup[cgroups] = MUST(open(argv[cgroups + 1], O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        cgroups++;
    }
    if (argc != cgroups + 4) {
        fprintf(stderr, "usage: floor CGROUP... -- DIRECTORY PROGRAM\n");
        return 1;
    }
    snprintf(name, sizeof name, "autodriver-floor-%d", getpid());
    umask(0);
    MUST(setpriority(PRIO_PROCESS, 0, -20));
    look_at_root();
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, hand));
    MUST(pipe2(report, O_CLOEXEC));
    MUST(sched_getaffinity(0, sizeof others, &others));
    child = spawn(CLONE_NEWPID);
    if (child == 0)
        init(hand[1], report[1], argv[cgroups + 2], argv[cgroups + 3]);
    CPU_CLR(sched_getcpu(), &others);
    sched_setaffinity(child, sizeof others, &others);
    close(hand[1]);
    close(report[1]);
    make_storage(hand[0]);
    make_cgroups(hand[0]);
    if (read(report[0], &status, sizeof status) != sizeof status)
        status = 1;
    for (int i = 0; i < cgroups; i++)
        while (unlinkat(cgroup[i], name, AT_REMOVEDIR) && errno == EBUSY)
            ;
    MUST(waitpid(child, 0, 0));
    return status != 0;
}
