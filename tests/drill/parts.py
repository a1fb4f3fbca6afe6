"""What runs on the hosts of the drill, with the settings of each part that matter."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import amqp
import psycopg
import redis

from assignment_workers.devstack import postgres, rabbitmq, valkey
from assignment_workers.devstack.unprivileged import Account, account_for
from tests.drill.hosts import NETWORK, OFFICES, Host, Unit, wait_until
from tests.drill.promotion import STANDBY
from tests.support import proxy as haproxy
from tests.support.root import ROOT

MASTER = "dialer"
GATEWAY_PORT = 8000
PROXY = f"http://{OFFICES}:{GATEWAY_PORT}"

POSTGRES = postgres.SETTINGS | {
    "listen_addresses": "*",
    "port": "5432",
    "wal_sender_timeout": "3s",
    "wal_receiver_timeout": "3s",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "500ms",
    "wal_keep_size": "512MB",
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "5s",
}
ACCESS = f"""\
host all,replication postgres {NETWORK}.0/24 trust
host all all {NETWORK}.0/24 scram-sha-256
"""
TIMELINE = """
SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) WHERE NOT pg_is_in_recovery()
"""
SENTINEL = """\
bind {address}
port 26379
dir {folder}
sentinel monitor {master} {primary} 6379 2
sentinel auth-pass {master} {password}
sentinel down-after-milliseconds {master} 2000
sentinel failover-timeout {master} 6000
sentinel parallel-syncs {master} 2
"""
VALKEY = """\
masterauth {password}
replica-priority {priority}
repl-diskless-sync-delay 0
min-replicas-to-write 1
min-replicas-max-lag 10
{follows}
"""
RABBIT = """\
loopback_users = none
cluster_partition_handling = pause_minority
cluster_formation.peer_discovery_backend = classic_config
{nodes}
net_ticktime = 4
"""
QUEUES_LEAD = """
Names = [element(1, amqqueue:get_pid(Q)) || Q <- rabbit_amqqueue:list(), amqqueue:is_quorum(Q)],
Led = fun(Name) -> {{ok, _, Leader}} = ra:members({{Name, node()}}), Leader end,
[ra:transfer_leadership(Led(Name), {{Name, '{node}'}}) || Name <- Names],
timer:sleep(2000),
[Name || Name <- Names, Led(Name) =/= {{Name, '{node}'}}].
"""
QUEUES_BEHIND = """
Read = fun(Name, Replica) -> proplists:get_value(Name, Replica) end,
IsBehind = fun(Queue) ->
  {resource, Host, queue, Name} = amqqueue:get_name(Queue),
  Replicas = rabbit_quorum_queue:status(Host, Name),
  At = [Read(<<"Commit Index">>, R) || R <- Replicas,
        lists:member(Read(<<"Raft State">>, R), [leader, follower])],
  length(lists:usort([Read(<<"Term">>, R) || R <- Replicas])) > 1
    orelse length(At) < 3 orelse lists:max(At) - lists:min(At) > 100
end,
[amqqueue:get_name(Q) || Q <- rabbit_amqqueue:list(), amqqueue:is_quorum(Q), IsBehind(Q)].
"""
RABBIT_ARGUMENTS = "-aten poll_interval 500 -kernel net_setuptime 2 -kernel inet_dist_use_interface"


@dataclass
class Parts:
    """The programs of all three hosts. `folder` is theirs; `variables` are settings of ours."""

    hosts: list[Host]
    folder: Path
    variables: dict[str, str]
    is_on_rabbitmq: bool
    password: str = field(default_factory=lambda: secrets.token_hex(8))
    account: Account | None = None
    _database_password: str = ""

    @property
    def data_hosts(self) -> list[Host]:
        """The two hosts that have everything; the third one has what decides between them."""
        return self.hosts[:2]

    @property
    def database_url(self) -> str:
        """The address of both servers."""
        hosts = ",".join(f"{each.address}:5432" for each in self.data_hosts)
        return f"postgresql://{postgres.ROLE}:{self._database_password}@{hosts}/{postgres.ROLE}"

    @property
    def redis_url(self) -> str:
        """The address of the three Sentinels."""
        at = [f"sentinel://:{self.password}@{each.address}:26379/0" for each in self.hosts]
        return f"{';'.join(at)}?master_name={MASTER}"

    @property
    def broker_url(self) -> str | None:
        """The addresses of the three nodes of RabbitMQ; None if Valkey is the broker."""
        return self.broker_from(self.hosts[0])

    def broker_from(self, host: Host) -> str | None:
        """Return the same for the processes of a host, its own node first."""
        if not self.is_on_rabbitmq:
            return None
        nodes = sorted(self.hosts, key=lambda each: each is not host)
        return ";".join(f"amqp://guest:guest@{each.address}:5672//" for each in nodes)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process of ours."""
        kept = {name: value for name, value in os.environ.items() if "ASSIGNMENT" not in name}
        addresses = {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}
        if self.broker_url:
            addresses["BROKER_URL"] = self.broker_url
        own = {
            "ASSIGNMENT_WORKERS_GATEWAY_PORT": str(GATEWAY_PORT),
            "ASSIGNMENT_WORKERS_GATEWAY_PROXIES": OFFICES,
            "ASSIGNMENT_WORKERS_CELERY_CONFIG": str(ROOT / "celeryconfig.py"),
        }
        return kept | addresses | own | self.variables

    def make_postgres(self) -> None:
        """Make the data of the first server."""
        folder = self._data(self.hosts[0]).parent
        folder.mkdir(parents=True, mode=0o700)
        made = postgres.prepare(folder)
        self._database_password = made.url.partition(f"{postgres.ROLE}:")[2].partition("@")[0]
        (folder / "data" / "pg_hba.conf").write_text(ACCESS, "ascii")
        self.account = account_for(postgres.find_programs() / "postgres", folder / "data")

    def start_postgres(self, host: Host) -> None:
        """Start the server of a host on the data that it has."""
        data = self._data(host)
        (data / "postmaster.pid").unlink(missing_ok=True)
        argv = [str(postgres.find_programs() / "postgres"), "-D", str(data)]
        argv += [word for name, value in POSTGRES.items() for word in ("-c", f"{name}={value}")]
        host.start(Unit("postgres", self._as_account(argv), dict(os.environ), is_kept=False))

    def copy_postgres(self, host: Host, primary: Host) -> None:
        """Make the data of this host's server anew, as a copy of the primary's that follows it."""
        data = self._data(host)
        shutil.rmtree(data, ignore_errors=True)
        data.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        upstream = (
            f"host={primary.address} port=5432 user=postgres application_name={STANDBY}"
            " connect_timeout=2 tcp_user_timeout=3000"
        )
        argv = [str(postgres.find_programs() / "pg_basebackup"), "--pgdata", str(data)]
        argv += ["--dbname", upstream, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        subprocess.run(host.inside(*self._as_account(argv)), check=True, capture_output=True)
        # The primary's own: a standby that is promoted has no standby yet.
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write("synchronous_standby_names = ''\n")

    def primary(self) -> Host | None:
        """Return the host whose server takes writes; of two the one that is on a later timeline."""
        found = [(rows[0][0], each) for each in self.data_hosts if (rows := run(each, TIMELINE))]
        return max(found, key=lambda each: str(each[0]))[1] if found else None

    def is_followed(self) -> bool:
        """Return True if the first host's server is primary, and commits wait for the second's."""
        sql = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
        return bool(run(self.hosts[0], sql))

    def start_valkey(self, host: Host) -> None:
        """Start the host's Valkey and its Sentinel."""
        data, watch = self._folder(host, "valkey"), self._folder(host, "sentinel")
        configuration = data / "valkey.conf"
        first = self.hosts[0]
        if not configuration.exists():
            made = valkey.CONFIGURATION.format(
                host=host.address,
                port=6379,
                password=self.password,
                data=data,
                appendfsync="everysec",
            ) + VALKEY.format(
                password=self.password,
                priority=10 * (1 + self.hosts.index(host)),
                follows="" if host is first else f"replicaof {first.address} 6379",
            )
            configuration.write_text(made, "ascii")
            (watch / "sentinel.conf").write_text(
                SENTINEL.format(
                    address=host.address,
                    folder=watch,
                    master=MASTER,
                    primary=first.address,
                    password=self.password,
                ),
                "ascii",
            )
        program = str(valkey.find_program())
        host.start(Unit("valkey", [program, str(configuration)], {}))
        host.start(Unit("sentinel", [program, str(watch / "sentinel.conf"), "--sentinel"], {}))

    def valkey_primary(self) -> str | None:
        """Return the address that a majority of Sentinels names; None without one."""
        named = [found[0] for each in self.hosts if (found := self._asked(each))]
        best = max(set(named), key=named.count, default=None)
        return best if named.count(best or "") > 1 else None

    def valkey_is_whole(self) -> bool:
        """Return True if every Sentinel knows the others and two replicas that follow."""
        for each in self.hosts:
            try:
                with _client(each, 26379) as sentinel:
                    said = sentinel.sentinel_master(MASTER)
                    replicas = sentinel.sentinel_slaves(MASTER)
            except redis.RedisError:
                return False
            follow = [r for r in replicas if r["master-link-status"] == "ok" and not r["is_sdown"]]
            if len(follow) != 2 or said["num-other-sentinels"] != 2 or said["is_sdown"]:
                return False
        return True

    def bring_valkey_home(self) -> None:
        """Make the first host's Valkey the primary, as an operator does."""
        with _client(self.hosts[2], 26379) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", MASTER)

    def _asked(self, host: Host) -> tuple[str, int] | None:
        try:
            with _client(host, 26379) as sentinel:
                found: tuple[str, int] | None = sentinel.sentinel_get_master_addr_by_name(MASTER)
        except redis.RedisError:
            return None
        return found

    def start_rabbitmq(self, host: Host) -> None:
        """Start the host's node of RabbitMQ."""
        folder = self._folder(host, "rabbitmq")
        cookie = folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(self.password, "ascii")
            cookie.chmod(0o400)
            nodes = "\n".join(
                f"cluster_formation.classic_config.nodes.{number} = rabbit@{each.address}"
                for number, each in enumerate(self.hosts, 1)
            )
            (folder / "rabbitmq.conf").write_text(RABBIT.format(nodes=nodes), "ascii")
            (folder / "plugins").write_text("[].", "ascii")
        address = "{" + host.address.replace(".", ",") + "}"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_NODENAME": f"rabbit@{host.address}",
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{RABBIT_ARGUMENTS} {address} -setcookie {self.password}",
        }
        host.start(Unit("epmd", ["epmd", "-address", host.address], environment))
        host.start(Unit("rabbitmq", [str(rabbitmq.PROGRAM)], environment))

    def rabbitmq_serves(self, host: Host) -> bool:
        """Return True if this node takes connections."""
        try:
            with amqp.Connection(f"{host.address}:5672", connect_timeout=2, read_timeout=2):
                return True
        except (OSError, amqp.AMQPError):
            return False

    def queues_are_whole(self) -> bool:
        """Return True if each quorum queue has a leader, and two replicas that have caught up."""
        return self._evaluate(self.hosts[0], QUEUES_BEHIND) == "[]"

    def bring_queues_to(self, host: Host) -> None:
        """Make this host's node of RabbitMQ the leader of every quorum queue."""
        moved = QUEUES_LEAD.format(node=f"rabbit@{host.address}")
        wait_until(
            lambda: self._evaluate(host, moved) == "[]", "RabbitMQ's queues to move", seconds=60
        )

    def _evaluate(self, host: Host, expression: str) -> str:
        """Return what an Erlang expression gives on a host's node; empty if it failed."""
        ctl = str(rabbitmq.PROGRAM.with_name("rabbitmqctl"))
        node = f"rabbit@{host.address}"
        argv = host.inside(ctl, "--longnames", "-n", node, "eval", expression)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder(host, "rabbitmq")),
            "LANG": "C.UTF-8",
        }
        return subprocess.run(
            argv, env=environment, stdout=subprocess.PIPE, text=True, check=False, timeout=60
        ).stdout.strip()

    def start_ours(self, host: Host) -> None:
        """Start what a host has of ours: everything, or the promotion."""
        if host not in self.data_hosts:
            addresses = [each.address for each in self.data_hosts]
            argv = [sys.executable, "-m", "tests.drill.promotion", *addresses]
            host.start(Unit("promotion", argv, dict(os.environ)))
            return
        # A leader ends with its connection to a primary that fails over. The second one leads then
        # at once, where the first would have to start.
        for unit in ("sequencer", "sequencer-2", "maintenance", "beat", "gateway"):
            name = unit.partition("-")[0]
            argv = [sys.executable, "-m", "assignment_workers", "process", name]
            own = {
                "ASSIGNMENT_WORKERS_HOME": str(self._folder(host, "home")),
                "ASSIGNMENT_WORKERS_GATEWAY_HOST": host.address,
                "BROKER_URL": self.broker_from(host) or "",
            }
            host.start(Unit(unit, argv, self.environment | own))

    def proxy(self) -> subprocess.Popen[bytes]:
        """Start HAProxy, where the agents are."""
        file = self.folder / "haproxy.cfg"
        gateways = [f"{each.address}:{GATEWAY_PORT}" for each in self.data_hosts]
        bind = f"{OFFICES}:{GATEWAY_PORT}"
        file.write_text(haproxy.configuration(gateways, bind=bind))
        log = (self.folder / "haproxy.log").open("wb")
        argv = [str(haproxy.HAPROXY), "-db", "-f", str(file)]
        return subprocess.Popen(argv, stdout=log, stderr=log)

    def _data(self, host: Host) -> Path:
        return self.folder / host.name / "postgres" / "data"

    def _folder(self, host: Host, name: str) -> Path:
        made = self.folder / host.name / name
        made.mkdir(parents=True, mode=0o700, exist_ok=True)
        return made

    def _as_account(self, argv: list[str]) -> list[str]:
        return self.account.command(argv) if self.account else argv


def run(host: Host, sql: str, *, database: str = postgres.ROLE) -> list[Any] | None:
    """Run a statement on a host's PostgreSQL and return its rows; None if it does not answer."""
    try:
        with psycopg.connect(
            host=host.address,
            user="postgres",
            dbname=database,
            autocommit=True,
            connect_timeout=2,
            options="-c statement_timeout=3000",
        ) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []
    except psycopg.Error:
        return None


def _client(host: Host, port: int) -> redis.Redis:
    limits: dict[str, Any] = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
    return redis.Redis(host=host.address, port=port, decode_responses=True, **limits)
