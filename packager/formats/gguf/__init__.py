"""GGUF: conversion."""
