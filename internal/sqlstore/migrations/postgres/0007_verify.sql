-- How far VERIFYING's full pass has come. A program that does not know the columns
-- makes its pass in one go; what it leaves of another's is true all the same, since
-- nothing comes under an older key any more.

-- +goose Up
alter table job add column verify_cursor text   not null default '';
alter table job add column verify_seen   bigint not null default 0;
alter table job add column verify_rows   bigint not null default 0;
