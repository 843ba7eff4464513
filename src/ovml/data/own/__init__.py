"""Labelled images in the form that their owner has: tables, COCO, VOC, YOLO, folders, Parquet, objects in memory."""
