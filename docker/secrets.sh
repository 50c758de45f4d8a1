#!/bin/sh
# Make the secrets that compose.yaml reads, in the folder secrets/ beside this file; those that are there stay.
# The folder is its owner's alone. The files can be read by everybody, as the containers' users have numbers of their own.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets
hex() { od -An -v -tx1 -N "$1" /dev/urandom | tr -d ' \n'; }
keep() {
    if [ -e "secrets/$1" ]; then
        echo "secrets/$1 is there"
    elif [ "${#2}" -lt 48 ]; then
        echo "no random bytes could be read: secrets/$1 was not made" >&2
        exit 1
    else
        printf '%s\n' "$2" >"secrets/$1"
        chmod 444 "secrets/$1"
        echo "secrets/$1 was made"
    fi
}
keep database_password "$(hex 24)"
keep admin_token "tuner_$(hex 6)_$(hex 32)"
keep worker_token "tuner_$(hex 6)_$(hex 32)"
