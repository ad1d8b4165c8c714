#!/usr/bin/env bash
# A Kafka broker for a first try: one node on 127.0.0.1:9092, data in build/kafka/data, ends with Ctrl-C.
# Needs Java 17; the jars come by Maven, once. Not for production: nothing is replicated, encrypted or authenticated.
set -euo pipefail
cd "$(dirname "$0")/.."
home=build/kafka
port=${KAFKA_PORT:-9092}
controller=${KAFKA_CONTROLLER_PORT:-9093}

for tool in java mvn; do
  if ! command -v "$tool" >/dev/null; then
    echo "kafka: $tool is missing; run: sudo apt-get install openjdk-17-jre-headless maven (or use: docker compose up kafka)" >&2
    exit 1
  fi
done
mkdir -p "$home/libs"
if ! cmp -s tests/support/pom.xml "$home/libs/made-from.xml"; then
  echo "kafka: fetching the broker (44 MB)" >&2
  mvn -q -B -f tests/support/pom.xml dependency:copy-dependencies "-DoutputDirectory=$PWD/$home/libs" -DincludeScope=runtime
  cp tests/support/pom.xml "$home/libs/made-from.xml"
fi

cat >"$home/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$PWD/$home/data
num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
EOF
run=(java -Xmx512m -Dorg.apache.logging.log4j.level=WARN -cp "$home/libs/*")
if [ ! -e "$home/data/meta.properties" ]; then
  uuid=$("${run[@]}" kafka.tools.StorageTool random-uuid)
  "${run[@]}" kafka.tools.StorageTool format "--cluster-id=$uuid" -c "$home/server.properties" >/dev/null
fi
echo "kafka: starting on 127.0.0.1:$port; Ctrl-C ends it, rm -r $home/data forgets everything" >&2
exec "${run[@]}" kafka.Kafka "$home/server.properties"
