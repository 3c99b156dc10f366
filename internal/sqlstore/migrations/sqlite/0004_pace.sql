-- How urgent a job is, how fast its shards move, and which replicas share a
-- budget of KMS requests.

-- +goose Up
alter table job add column priority text not null default 'NORMAL'
	constraint job_priority_known check (priority in ('NORMAL', 'HIGH'));

-- In thousandths a second, smoothed, as of pace_time.
alter table shard add column pace_rows      integer not null default 0;
alter table shard add column pace_calls     integer not null default 0;
alter table shard add column pace_throttled integer not null default 0;
alter table shard add column pace_time      integer not null default 0;

-- A replica that has called KMS of late. budgets is a JSON list.
create table replica (
	replica_id text    not null,
	until_time integer not null,
	budgets    text    not null,
	constraint replica_pk primary key (replica_id)
) strict, without rowid;
