#!/bin/bash
# Makes an OCI archive with Debian's Python 3 (sockets, ssl, json, urllib, sqlite3), CA certificates and busybox:
#
#   scripts/rootfs-python.sh OUT.tar [--add DIR]...
#
# Each --add is one more layer with the files of DIR at the image's root, owned by root, modes as they are.
# Needs no root and no network but apt's. Packages come from the machine's own, signed apt sources (Debian 12), resolved as for an
# empty system. The same packages and directories give the same bytes; both are kept in the cache, by content.
set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C TZ=UTC

cache=${NULLBOX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nullbox}/rootfs
packages=(python3-minimal libpython3-stdlib busybox-static ca-certificates)
# Come along only as dependencies of maintainer scripts, which are not run, and of Python's NIS module.
unwanted=(dpkg tar debconf openssl gcc-12-base libmd0 libpcre2-8-0 libselinux1 libzstd1 libacl1 readline-common
    libtirpc-common libtirpc3 libnsl2 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libkeyutils1 libcom-err2)
applets=(sh ls cat echo env id sleep ps kill wget nc nslookup ping mount dd cp mv rm mkdir ln chmod chown grep sed head tail
    wc find du df stat touch date hostname ip ifconfig route traceroute uname test true false sort sha256sum)
epoch=1735689600 # of everything we write ourselves: 2025-01-01

say() { printf 'rootfs-python: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# apt on an empty system of its own: nothing of this machine's but its sources and lists.
empty_apt() {
    mkdir -p "$work/archives/partial"
    : >"$work/status"
    apt-get -qq -y -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/archives" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Debug::NoLocking=1 \
        -o APT::Install-Recommends=false -o APT::Sandbox::User= "$@"
}

# The packages wanted, one file name a line, after a line for each with its digest.
resolve() {
    local list
    list=$(empty_apt --print-uris install "${packages[@]}") || die "apt cannot resolve ${packages[*]}: run apt-get update as root, on Debian 12"
    awk '{print $2, $4}' <<<"$list" | while read -r file digest; do
        case " ${unwanted[*]} " in *" ${file%%_*} "*) ;; *) echo "$file $digest" ;; esac
    done | sort
}

# pack DIR: a tar that tells nothing of when and by whom it was made.
pack() {
    tar --create --directory "$1" --sort=name --numeric-owner --owner=0 --group=0 --format=posix \
        --pax-option=delete=atime,delete=ctime "${@:2}" .
}

# precompile ROOT: bytecode of the modules that programs begin with, made by the very Python that reads it. Nobody can write it in a
# guest, and there compiling is what a start of Python takes longest for. By the sources' hash, which nothing looks at again: no times.
precompile() {
    local root=$1 lib=$1/usr/lib/x86_64-linux-gnu
    local python=("$root/lib64/ld-linux-x86-64.so.2" --library-path "$lib" "$root/usr/bin/python3.11")
    local imports='import argparse, asyncio, base64, concurrent.futures, contextlib, csv, datetime, functools, glob, hashlib, http.client, http.server
import io, json, logging, multiprocessing, os, pathlib, random, re, select, shlex, shutil, signal, site, socket, sqlite3, ssl, struct, subprocess
import sys, tempfile, threading, time, traceback, typing, unittest, urllib.error, urllib.parse, urllib.request, uuid
print("\n".join(sorted(f for m in list(sys.modules.values()) if (f := getattr(m, "__file__", None)) and f.endswith(".py"))))'
    env -i PYTHONHOME="$root/usr" PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 "${python[@]}" -S -c "$imports" >"$work/modules"
    env -i PYTHONHOME="$root/usr" PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 "${python[@]}" -S -m compileall -q \
        --invalidation-mode unchecked-hash -s "$root" -p / -i "$work/modules" >&2 || die "the modules of Python do not compile"
}

base_tree() {
    local root=$1 deb name applet
    mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{proc,sys,dev,run,tmp,root,app,data,home/agent,etc,var/tmp,var/lib,etc/ssl/certs}
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
    say "fetching packages with apt"
    empty_apt --download-only install "${packages[@]}" >&2
    while read -r deb _; do
        # Through tar ourselves: dpkg-deb -x would put a directory in place of the links above.
        dpkg-deb --fsys-tarfile "$work/archives/$deb" | tar --extract --directory "$root" --keep-directory-symlink --no-same-owner
    done
    for applet in "${applets[@]}"; do [ -e "$root/usr/bin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"; done
    rm -rf "$root"/usr/share/{doc,man,info,lintian,bug,locale,doc-base,apport,binfmts,initramfs-tools,pixmaps,applications}
    rm -rf "$root"/usr/lib/python3.11/{test,idlelib,lib2to3,pydoc_data,ensurepip,distutils} "$root"/usr/lib/x86_64-linux-gnu/gconv
    find "$root/usr/share/ca-certificates" -name '*.crt' -print0 | sort -z | xargs -0 cat >"$root/etc/ssl/certs/ca-certificates.crt"
    printf 'root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/home/agent:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n' >"$root/etc/group"
    printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
    : >"$root/etc/resolv.conf"
    printf 'PRETTY_NAME="Debian 12 packages"\nID=debian\nVERSION_ID="12"\n' >"$root/etc/os-release"
    precompile "$root"
    chmod -R u+rwX,go+rX,go-w "$root"
    chmod 1777 "$root/tmp" "$root/var/tmp"
    chmod 700 "$root/root"
    find "$root" -newermt "@$epoch" -exec touch --no-dereference --date "@$epoch" {} +
}

# base LIST: path of the base layer, made when it is not in the cache.
base() {
    local list=$1 key layer
    key=$( (sed -n '/^packages=/,/^blob()/p' "$0"; cat "$list") | sha256sum | cut -c1-32)
    layer=$cache/base-$key.tar
    if [ ! -e "$layer" ]; then
        base_tree "$work/root" <"$list"
        pack "$work/root" >"$work/base.tar"
        mkdir -p "$cache"
        mv "$work/base.tar" "$layer.$$" && mv "$layer.$$" "$layer"
    fi
    echo "$layer"
}

digest() { sha256sum "$1" | cut -d' ' -f1; }

# blob FILE: moves it to its place in the layout; prints digest and size.
blob() {
    local digest
    digest=$(digest "$1")
    mv "$1" "$work/oci/blobs/sha256/$digest"
    echo "$digest $(stat -c %s "$work/oci/blobs/sha256/$digest")"
}

joined() { local IFS=,; echo "$*"; }

# oci OUT LAYER.tar...: the layers as an image for amd64.
oci() {
    local out=$1 layer diff_ids=() layers=() sum size
    shift
    mkdir -p "$work/oci/blobs/sha256"
    for layer in "$@"; do
        diff_ids+=("\"sha256:$(digest "$layer")\"")
        gzip -n -6 <"$layer" >"$work/blob"
        read -r sum size < <(blob "$work/blob")
        layers+=("{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$sum\",\"size\":$size}")
    done
    printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/bin:/bin","LANG=C.UTF-8","PYTHONUNBUFFERED=1","PYTHONDONTWRITEBYTECODE=1"],"WorkingDir":"/","Cmd":["/usr/bin/python3"]},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
        "$(joined "${diff_ids[@]}")" >"$work/config"
    read -r sum size < <(blob "$work/config")
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[%s]}' \
        "$sum" "$size" "$(joined "${layers[@]}")" >"$work/manifest"
    read -r sum size < <(blob "$work/manifest")
    printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"platform":{"os":"linux","architecture":"amd64"}}]}' \
        "$sum" "$size" >"$work/oci/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$work/oci/oci-layout"
    pack "$work/oci" --mtime="@$epoch" --mode=u=rwX,go=rX >"$work/out.tar"
    mv "$work/out.tar" "$out"
}

main() {
    local out=${1:-} adds=() number=0 directory layers key archive
    [ -n "$out" ] && [[ $out != -* ]] || die "usage: rootfs-python.sh OUT.tar [--add DIR]..."
    shift
    while [ $# -gt 0 ]; do
        [ "$1" = --add ] && [ -d "${2:-}" ] || die "--add needs a directory; got: $*"
        adds+=("$2")
        shift 2
    done
    resolve >"$work/list"
    layers=("$(base "$work/list")")
    for directory in "${adds[@]}"; do
        number=$((number + 1))
        pack "$directory" --mtime="@$epoch" --mode=u=rwX,go=rX >"$work/add-$number.tar"
        layers+=("$work/add-$number.tar")
    done
    key=$(cat "$0" "${layers[@]}" | sha256sum | cut -c1-32)
    archive=$cache/python-$key.tar
    if [ ! -e "$archive" ]; then
        oci "$archive.$$" "${layers[@]}"
        mv "$archive.$$" "$archive"
    fi
    # A hard link or a reflink would let a writer change the cache.
    cp "$archive" "$out.$$" && mv "$out.$$" "$out"
    say "$out: $(stat -c %s "$out") bytes, $(wc -l <"$work/list") packages, ${#layers[@]} layers"
}

main "$@"
