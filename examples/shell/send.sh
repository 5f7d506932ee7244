#!/bin/sh
# Sends jobs as a batch: send.sh LANE BATCH INSTANCE...
# `reveille submit` makes them persistent, and returns once RabbitMQ has confirmed each.
set -eu
[ $# -ge 3 ] || { echo "usage: send.sh LANE BATCH INSTANCE..." >&2; exit 2; }
lane=$1 batch=$2
shift 2
export REVEILLE_BROKER__URL="${AMQP_URL:-amqp://guest:guest@127.0.0.1:5672/%2f}"
exec reveille submit --lane "$lane" --batch "$batch" "$@"
