#!/bin/sh
# Reacts to the end of a batch: react.sh BATCH
# `reveille watch` reads the outcomes from their log, so it can begin and begin again at any time, after the batch too, and waits
# where the connection is lost.
set -eu
[ $# = 1 ] || { echo "usage: react.sh BATCH" >&2; exit 2; }
export REVEILLE_BROKER__URL="${AMQP_URL:-amqp://guest:guest@127.0.0.1:5672/%2f}"
failures=$(mktemp)
trap 'rm -f "$failures"' EXIT

if reveille watch "$1" --failures-file "$failures" >&2; then
    echo "all are up"
else
    code=$? # 1: some are not
    # The reaction to each failure.
    jq --raw-output '[.job_id, .instance_id, .outcome, .reason // "-"] | join(" ")' "$failures"
    exit "$code"
fi
