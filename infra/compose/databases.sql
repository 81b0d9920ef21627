-- Run once by the Postgres image, on an empty volume; POSTGRES_DB creates the other one.
CREATE DATABASE prefect;
