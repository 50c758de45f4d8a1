#!/bin/sh
# What the official image does at its start, as far as compose.yaml relies on it.
set -eu
programs=$(echo /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql/data
if [ "$(id -u)" = 0 ]; then
    chown postgres "$data" /run/postgresql
    chmod 700 "$data"
    exec setpriv --reuid=postgres --regid=postgres --init-groups sh "$0" "$@"
fi
if [ ! -s "$data/PG_VERSION" ]; then
    "$programs/initdb" -D "$data" -U "$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \
        --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    "$programs/pg_ctl" -D "$data" -o "-c listen_addresses=''" -w start
    "$programs/createdb" -h /run/postgresql -U "$POSTGRES_USER" "$POSTGRES_DB"
    "$programs/pg_ctl" -D "$data" -m fast -w stop
fi
exec "$programs/postgres" -D "$data" -c listen_addresses='*'
