# shellcheck shell=bash
# What every script here shares: the repository's root, the static target, missing packages.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$root/target}
# the jobs see the system's own directories, so tools are looked for there and nowhere else
system_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND=noninteractive

say() { printf '\n== %s\n' "$*"; }
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Runs a command as root, through sudo where we are not.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "'$1' must run as root, and there is no sudo: run this script as root"
    fi
}

# Fetches the package lists, once for all scripts that this one starts.
update_packages() {
    [ -z "${PACKAGES_UPDATED:-}" ] || return 0
    command -v apt-get >/dev/null || die "this is no Debian (no apt-get): install by hand what is named above"
    as_root apt-get -o DPkg::Lock::Timeout=300 update -qq >&2
    export PACKAGES_UPDATED=1
}

# need_package PACKAGE...: installs those that are missing.
need_package() {
    local package missing=()
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    printf 'installing %s\n' "${missing[*]}" >&2
    update_packages
    # another installation may be going on, as it does on a machine that has just been started
    as_root apt-get -o DPkg::Lock::Timeout=300 install -qq -y --no-install-recommends "${missing[@]}" >&2 </dev/null ||
        die "cannot install ${missing[*]}: see apt-get's message above"
}

# take_apart PACKAGE DIRECTORY: puts the files of Debian's package there, and installs nothing.
take_apart() {
    [ -n "$(apt-cache show "$1" 2>/dev/null)" ] || update_packages
    (cd "$2" && apt-get -o APT::Sandbox::User=root download -qq "$1" >&2) || die "cannot download Debian's package $1"
    dpkg -x "$2"/*.deb "$2"
    rm "$2"/*.deb
}

# need COMMAND PACKAGE...: installs the packages where the command is missing.
need() {
    PATH=$system_path command -v "$1" >/dev/null && return
    need_package "${@:2}"
    PATH=$system_path command -v "$1" >/dev/null || die "'$1' is still missing after installing ${*:2}"
}

# add_busybox DIRECTORY: a static busybox into the root file system there, with a link for each command.
add_busybox() {
    need_package busybox-static
    cp "$(dpkg-query -L busybox-static | grep -m 1 -x '.*/bin/busybox')" "$1/bin/busybox"
    as_root chroot "$1" /bin/busybox --install -s /bin
}

# scratch_tree DIRECTORY: the root file system of an image that holds a static busybox only.
scratch_tree() {
    mkdir -p "$1"/{bin,etc,proc,sys,dev,run,tmp,var/tmp}
    chmod 1777 "$1"/{tmp,var/tmp}
    add_busybox "$1"
    echo 'root:x:0:0:root:/:/bin/sh' >"$1/etc/passwd"
    echo 'root:x:0:' >"$1/etc/group"
}

# expected_of ENVIRONMENT BROKE: the attacks that tests/conformance.expected has for it, sorted; of those with a
# question mark the ones in the file BROKE.
expected_of() {
    awk -v name="$1" 'FILENAME == ARGV[1] { broke[$1]; next } $1 == name && (sub(/\?$/, "", $2) == 0 || $2 in broke) { print $2 }' \
        "$2" "$root/tests/conformance.expected" | sort
}

# need_rust: cargo, from Debian's rustup where that is to be had, and new enough.
need_rust() {
    local oldest
    oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
    if ! command -v cargo >/dev/null; then
        update_packages
        [ -n "$(apt-cache search --names-only '^rustup$')" ] ||
            die "cargo is missing, and Debian's is too old here: install Rust $oldest or newer (https://rustup.rs)"
        need_package rustup
        rustup default stable >&2
    fi
    printf 'cargo %s\n%s\n' "$oldest" "$(cargo --version)" | sort -CV ||
        die "$(cargo --version) is too old: install Rust $oldest or newer (https://rustup.rs)"
}

# need_cargo_tool NAME...: the subcommands that are components of the toolchain.
need_cargo_tool() {
    local name
    for name in "$@"; do
        cargo "$name" --version >/dev/null 2>&1 || rustup component add "$name" >&2 ||
            die "'cargo $name' is missing: install it with 'rustup component add $name'"
    done
}

# need_job_tools: what the sample jobs use.
need_job_tools() {
    need make make
    need cc gcc libc6-dev
    need javac default-jdk-headless
    need python3 python3
}

# need_toolchains: the compilers, interpreters and debuggers that courses use.
need_toolchains() {
    need_job_tools
    need g++ g++
    need gdb gdb
    need valgrind valgrind
    need node nodejs
    need go golang-go
}

# The target of the static binaries: musl where installed, else glibc with its archive linked in; or STATIC_TARGET.
static_target() {
    local cpu
    cpu=$(uname -m)
    if [ -n "${STATIC_TARGET:-}" ]; then
        echo "$STATIC_TARGET"
    elif [ -d "$(rustc --print target-libdir --target "$cpu-unknown-linux-musl" 2>/dev/null)" ]; then
        echo "$cpu-unknown-linux-musl"
    else
        echo "$cpu-unknown-linux-gnu"
    fi
}

# Runs a cargo subcommand so that what it links is static.
static_cargo() {
    RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
        cargo "$1" --locked --target "$(static_target)" --target-dir "$target_dir" "${@:2}"
}
