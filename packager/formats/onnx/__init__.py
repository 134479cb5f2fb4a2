"""ONNX: conversion."""
