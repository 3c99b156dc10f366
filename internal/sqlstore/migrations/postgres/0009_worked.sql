-- When a worker of the job last gave a shard back, or its shards were cut: by it claims find the job that
-- has waited longest without a look at all jobs. A program that does not know the
-- column leaves it as it was, so that the jobs that it works on come too early in their turn.

-- +goose Up
alter table job add column worked_time bigint not null default 0;
