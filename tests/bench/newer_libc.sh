#!/usr/bin/env bash
# newer_libc.sh FOLDER: the C and C++ libraries of the next Debian into FOLDER, beside the machine's own and from
# the mirror that it uses itself. perf_analyzer is built against glibc 2.38; Debian 12 has 2.36.
set -euo pipefail
folder=$1
suite=trixie
packages=(libc6 libstdc++6 libgcc-s1 libssl3t64 zlib1g)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/lists/partial "$work"/cache/archives/partial "$work"/root "$folder"
# shellcheck disable=SC2016  # these are apt's own placeholders
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' \
  | awk '$2 !~ /-/ && $3 == "main" { print $1; exit }')
test -n "$mirror" || { echo "newer_libc.sh: apt knows no mirror here" >&2; exit 1; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$work"/sources.list
options=(-qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
apt-get "${options[@]}" update
(cd "$work" && apt-get "${options[@]}" download "${packages[@]}")
for package in "$work"/*.deb; do dpkg-deb --extract "$package" "$work/root"; done
cp -a "$work"/root/usr/lib/*-linux-gnu/. "$folder"
